"""The checkpoints of a run: whole or not there at all, the last one where training is, the newest first."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from robustlit.checks import check_positive, did_you_mean
from robustlit.experiment.recipes import ConfigError
from robustlit.files import write_tensors
from robustlit.tracking.console import say
from robustlit.training import CheckpointError, read_checkpoint
from robustlit.training.boundary import resumes_exactly_after

LAST, BEST = "last.ckpt", "best.ckpt"
_CLOCK_STEPS = 20  # with several processes, how often they agree on the time: each time costs a broadcast


class WholeFiles(TorchCheckpointIO):
    """Write every checkpoint of a Trainer by `write_tensors`.

    Lightning writes to the temporary folder and moves: onto another file system that is a copy, which a kill can cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace the file `path`."""
        write_tensors(path, checkpoint)


def keep_best(folder: Path, monitor: str | None, module: Any, *, checked: bool = True) -> ModelCheckpoint:
    """Return the callback that saves `best.ckpt`, where what the recipe monitors is largest.

    Args:
        folder: Where to save.
        monitor: The name that is logged; None saves after each validation.
        module: What is trained; the names in its `monitors`, if it has that, are those it can be chosen by.
        checked: False where nothing is trained, or a callback of the user's own may log further names.

    Raises:
        ConfigError: `monitor` is none of these names.
    """
    known = getattr(module, "monitors", None)
    if checked and monitor is not None and known is not None and monitor not in known:
        hint = did_you_mean(str(monitor), known)
        raise ConfigError(
            f"monitor must be a figure of the validation of which the largest is best, {' or '.join(known)}, got "
            f"{monitor}; {hint or 'a module of yours that logs another names it in its attribute monitors'}"
        )
    return ModelCheckpoint(folder, "best", monitor=monitor, mode="max", enable_version_counter=False)


class SaveLast(Checkpoint):
    """Save `last.ckpt` after every epoch, and after a step when some minutes have passed.

    `ModelCheckpoint(save_last=True)` beside a monitored value saves only when that value improved. Steps from which
    training would not resume exactly are left out.

    Args:
        folder: Where to save.
        minutes: Between two checkpoints within an epoch; None saves only after epochs.

    Attributes:
        seconds: Duration of the training so far, with that of earlier processes.
        last_model_path: The file, once it was saved.
    """

    def __init__(self, folder: Path, minutes: float | None) -> None:
        if minutes is not None:
            check_positive(minutes, "checkpoint_minutes", "; null saves after epochs alone")
        self.path, self.minutes = folder / LAST, minutes
        self.last_model_path = ""
        self._before, self._started = 0.0, time.monotonic()
        self._saved = self._started

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return the duration of the training so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the duration of the training."""
        self._before = float(state_dict["seconds"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when the minutes have passed."""
        if self.minutes is None or not resumes_exactly_after(trainer, batch_idx):
            return
        if trainer.world_size > 1 and trainer.global_step % _CLOCK_STEPS:
            return
        if trainer.strategy.broadcast(time.monotonic() - self._saved >= 60 * self.minutes):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
            self.last_model_path = str(self.path)
            self._saved = time.monotonic()


def newest_readable(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint that can be read, of a folder's last and best, and its content.

    A line says so where the last one cannot be read.

    Returns:
        None where there is neither.

    Raises:
        CheckpointError: There are checkpoints, and none can be read.
    """
    there = [path for path in (folder / LAST, folder / BEST) if path.is_file()]
    read, failed = [], []
    for path in there:
        try:
            read.append((path, read_checkpoint(path)))
        except CheckpointError as error:
            failed.append(error)
    if failed and not read:
        raise CheckpointError(f"{failed[0]}; {folder} has no other to resume from")
    newest = max(read, key=lambda found: found[1].get("global_step", 0), default=None)  # the first of equal ones
    if newest is not None and failed:
        say(f"{failed[0]}; resuming from {newest[0]}")
    return newest
