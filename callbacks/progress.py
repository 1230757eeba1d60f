"""Show the progress of training and attacks: a bar on a terminal, plain lines elsewhere, with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from robustlit.tracking.metrics import TRAIN_LOSS, VAL_ACCURACY, VAL_CERTIFIED, VAL_ROBUST

_SHOWN = {
    TRAIN_LOSS: "loss {:.3f}", VAL_ACCURACY: "val clean {:.2%}", VAL_ROBUST: "robust {:.2%}",
    VAL_CERTIFIED: "certified {:.2%}",
}  # fmt: skip


class Progress(ProgressBar):
    """Show the progress of training and of a sweep's attacks.

    The bar is redrawn twice a second: redrawn at every step it would slow a small net's step by half. Without a
    terminal the callback prints a line per epoch and, during a sweep, one every few seconds.

    Args:
        refresh_per_second: How often the bars are redrawn.
        seconds_between_lines: Seconds between two lines of a sweep where there is no terminal.
        console: Where to draw; None means standard error.
    """

    def __init__(
        self, *, refresh_per_second: float = 2.0, seconds_between_lines: float = 10.0, console: Console | None = None
    ) -> None:
        super().__init__()
        self._console = console or Console(stderr=True)
        self._rate, self._between_lines = refresh_per_second, seconds_between_lines
        self._enabled = True
        self._bars: Bars | None = None  # with one task
        self._next = 0.0
        self._part = 0  # of the sweep
        self._started = time.monotonic()

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown; Lightning disables it off the main process."""
        return self._enabled

    def disable(self) -> None:
        """Stop showing anything."""
        self._close()
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            self._console.print(*args, **{"highlight": False, "markup": False, **kwargs})

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar of steps."""
        self._open(_epoch(trainer), float(self.total_train_batches))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar, at most `refresh_per_second` times a second."""
        if self._bars is not None and (now := time.monotonic()) >= self._next:
            self._next = now + 1 / self._rate
            self._bars.update(TaskID(0), completed=batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rename the bar."""
        if self._bars is not None and not trainer.sanity_checking:
            self._bars.update(TaskID(0), description="validating")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line for the epoch, on a terminal too."""
        self._close()
        metrics = trainer.callback_metrics
        parts = [text.format(float(metrics[name])) for name, text in _SHOWN.items() if name in metrics]
        self.print(f"{_epoch(trainer)}  {'  '.join(parts)}  {time.monotonic() - self._started:.1f} s")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar for the whole sweep."""
        self._open("attacking", 1.0)
        self._part, self._next = 0, self._started

    def sweep_progress(self, attack: str, share: float, part: int = 0) -> None:
        """Move the bar after a step of an attack; called by `AttackSweep`.

        Args:
            attack: Name of the attack that runs.
            share: Share of the work of this part of the sweep that is done, in [0, 1].
            part: Its number; where another begins, the time left is that of its own work.
        """
        now = time.monotonic()
        if part != self._part:
            self._open("attacking", 1.0)
            self._part, self._next = part, now
        if self._bars is not None:
            self._bars.update(TaskID(0), completed=share, description=f"attacking: {attack}")
        elif now >= self._next + self._between_lines and share > 0:
            self._next = now
            left = (now - self._started) * (1 - share) / share
            self.print(f"attacking: {attack}  {share:.0%}  {left:.0f} s left")

    def _open(self, description: str, total: float) -> None:
        self._close()
        self._started = time.monotonic()
        if not self._enabled or not self._console.is_terminal:
            return
        finite = total if total != float("inf") else None
        count = [MofNCompleteColumn()] if finite is None or finite > 1 else []
        columns: Any = ("{task.description}", BarColumn(), *count, TimeElapsedColumn(), "left", TimeRemainingColumn())
        self._bars = Bars(*columns, console=self._console, refresh_per_second=self._rate, transient=True)
        self._bars.add_task(description, total=finite)
        self._bars.start()

    def _close(self, *arguments: Any, **named: Any) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    on_test_end = on_exception = teardown = _close  # on_exception: before the error is printed

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the bar and the console, which hold threads and locks."""
        return {**self.__dict__, "_bars": None, "_console": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy that draws on standard error."""
        self.__dict__.update(state)
        self._console = Console(stderr=True)


def sweep_report(bar: Any, start: float, step: float, *, others: bool = False) -> Callable[[str, float], None]:
    """Return what moves a `Progress` from the share `start` on by `step`, as an attack's own share goes from 0 to 1.

    Args:
        bar: The Trainer's bar; one of another kind is left alone.
        start, step: Shares of the images of this part of the sweep.
        others: The part is that of the images that a few attacks run on, after the first ones.
    """

    def report(name: str, share: float) -> None:
        if isinstance(bar, Progress):
            bar.sweep_progress(f"{name}, other images" if others else name, min(1.0, start + step * share), int(others))

    return report


def _epoch(trainer: pl.Trainer) -> str:
    of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{of}"
