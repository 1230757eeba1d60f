"""Save a checkpoint when Ctrl-C stops a training."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl


class SaveOnInterrupt(pl.Callback):
    """On the first Ctrl-C, finish the step, save a checkpoint from which training resumes exactly, and stop.

    An interrupt within a step could leave half of the weights updated, so the step is finished first. In a validation,
    the validation and the step after it are finished, so that the epoch counts for the best checkpoint. A second Ctrl-C
    stops at once. Several processes could stop at different steps and then wait for each other in saving: with them
    Ctrl-C stops at once, and the last epoch's checkpoint remains.

    Args:
        path: Where to save.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handler."""
        self._asked = False
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._before)  # the next Ctrl-C stops at once
        # Not print(): a handler may run in the middle of another write to the same buffer.
        os.write(2, b"\ninterrupted: a checkpoint is saved after this step; Ctrl-C again stops at once\n")

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any, **named: Any) -> None:
        """Save and stop after a Ctrl-C."""
        if self._asked:
            self._asked = False
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    on_train_end = on_train_batch_end  # a Ctrl-C during the last validation

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the signal handler."""
        if self._before is not None:
            if signal.getsignal(signal.SIGINT) == self._ask:
                signal.signal(signal.SIGINT, self._before)
            self._before = None
