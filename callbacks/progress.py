"""Progress: a bar on a terminal, plain lines elsewhere, for training and for attacks, with the time left."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(ProgressBar):
    """Shows how far training and the attacks of a sweep have come.

    It is redrawn a few times a second at most, as a bar that is redrawn at every step slows a small net's step by half.
    Without a terminal it prints a line per epoch and, during a sweep, one every so often.

    Args:
        refresh_per_second: how often the bars are redrawn.
        seconds_between_lines: how often a sweep prints a line where there is no terminal.
        console: where to draw; None means standard error.
    """

    def __init__(
        self,
        *,
        refresh_per_second: float = 2.0,
        seconds_between_lines: float = 10.0,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        self._console = console or Console(stderr=True)
        self._period = 1 / refresh_per_second
        self._between_lines = seconds_between_lines
        self._enabled = True
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._next = 0.0
        self._started = self._epoch_started = time.monotonic()

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown; Lightning disables it off the main process."""
        return self._enabled

    def disable(self) -> None:
        """Shows nothing from here on."""
        self._close()
        self._enabled = False

    def enable(self) -> None:
        """Shows again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints without tearing the bar."""
        if self._enabled:
            self._console.print(*args, **{"highlight": False, "markup": False, **kwargs})

    # Training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A bar of steps for each epoch."""
        self._epoch_started = time.monotonic()
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self._open(f"epoch {trainer.current_epoch + 1}{of}", float(self.total_train_batches))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar, when it is time."""
        self._move(batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Names what goes on."""
        if not trainer.sanity_checking:
            self._describe("validating")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A line for each epoch, on a terminal too."""
        self._close()
        shown = {
            "train/loss": "loss {:.3f}",
            "val/accuracy": "val clean {:.2%}",
            "val/robust_accuracy": "robust {:.2%}",
        }
        metrics = trainer.callback_metrics
        parts = [text.format(float(metrics[name])) for name, text in shown.items() if name in metrics]
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        seconds = time.monotonic() - self._epoch_started
        self.print(f"epoch {trainer.current_epoch + 1}{of}  {'  '.join(parts)}  {seconds:.1f} s")

    # Attacks

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A bar for the whole sweep."""
        self._started = self._next = time.monotonic()
        self._open("attacking", 1.0)

    def sweep_progress(self, attack: str, share: float) -> None:
        """Called by `AttackSweep` after each attack on each batch.

        Args:
            attack: the one that has just finished.
            share: of the whole sweep's work, in [0, 1].
        """
        if not self._enabled:
            return
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=share, description=f"attacking: {attack}")
            return
        now = time.monotonic()
        if now >= self._next + self._between_lines and share > 0:
            self._next = now
            left = (now - self._started) * (1 - share) / share
            self.print(f"attacking: {attack}  {share:.0%}  {left:.0f} s left")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the bar away."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Takes the bar away, so that the message stands alone."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the bar away."""
        self._close()

    # The bar itself

    def _open(self, description: str, total: float) -> None:
        self._close()
        if not self._enabled or not self._console.is_terminal:
            return
        finite = total if total != float("inf") else None
        count = [MofNCompleteColumn()] if finite is None or finite > 1 else []
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            *count,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=1 / self._period,
            transient=True,
        )
        self._task = self._bars.add_task(description, total=finite)
        self._bars.start()

    def _move(self, done: float) -> None:
        if self._bars is not None and self._task is not None and (now := time.monotonic()) >= self._next:
            self._next = now + self._period
            self._bars.update(self._task, completed=done)

    def _describe(self, description: str) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, description=description)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None

    def __getstate__(self) -> dict[str, Any]:
        """A bar and a console hold threads and locks: they are not copied."""
        return {**self.__dict__, "_bars": None, "_task": None, "_console": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy draws on standard error."""
        self.__dict__.update(state)
        self._console = Console(stderr=True)
