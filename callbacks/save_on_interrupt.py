"""SaveOnInterrupt: Ctrl-C in training ends the step or validation that runs, saves a checkpoint, then stops."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl


class SaveOnInterrupt(pl.Callback):
    """Turns the first Ctrl-C of a training run into a checkpoint from which it resumes exactly.

    An interrupt in the middle of a step could leave half of the weights updated, so the step is finished first; one
    in a validation ends it and the step after it, so that the epoch counts for the best checkpoint. A second Ctrl-C
    stops at once. With several processes they could stop at different steps, and saving together would
    hang: there Ctrl-C stops at once, and the last epoch's checkpoint remains.

    Args:
        path: where to save.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts listening."""
        self._asked = False
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._before)  # the next one is not waited for
        # Not print(): a handler may run in the middle of another write to the same buffer.
        os.write(2, b"\ninterrupted: a checkpoint is saved after this step; Ctrl-C again stops at once\n")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops, if asked to."""
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves and stops, if asked to during the last validation."""
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._asked:
            self._asked = False
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signal back."""
        if self._before is not None:
            if signal.getsignal(signal.SIGINT) == self._ask:
                signal.signal(signal.SIGINT, self._before)
            self._before = None
