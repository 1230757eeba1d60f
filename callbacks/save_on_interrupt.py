"""Save a checkpoint when a signal stops a training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from robustlit.processes import Guard, without_lightnings_handlers
from robustlit.training.boundary import resumes_exactly_after


class SaveOnInterrupt(pl.Callback):
    """On Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 finish the step, save a checkpoint that resumes exactly, and leave.

    A signal within a step could leave half of the weights updated, so the step is finished first, and further ones
    where training would not resume exactly (`resumes_exactly_after`); a validation is finished too, so that its epoch
    counts for the best checkpoint. In an `AttackSweep` the batch is abandoned and the finished ones are kept. The
    program leaves by SystemExit with 128 + the signal's number (130 for Ctrl-C); the same signal again, or a Ctrl-C,
    stops at once.

    Several processes all save and leave at the same step, whichever of them got the signal; when one of them dies, the
    others say so and end. SLURM's notice in advance (`--signal=USR1@120`) is answered by `scontrol requeue`. The
    handlers of Lightning, which wait in a collective for processes that may not have got the signal, are not installed.

    Args:
        path: Where to save.
        requeue: Under SLURM, requeue the job on SIGUSR1.

    Attributes:
        guard: What this run does on signals and deaths.
    """

    def __init__(self, path: str | Path, *, requeue: bool = True) -> None:
        self.path = Path(path)
        self.guard = Guard(requeue=requeue)

    @staticmethod
    def guard_of(trainer: pl.Trainer) -> Guard | None:
        """Return the guard of a Trainer's run, None where it has no such callback."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        return next((c.guard for c in callbacks if isinstance(c, SaveOnInterrupt)), None)

    @classmethod
    def interruptible(cls, trainer: pl.Trainer) -> AbstractContextManager[None]:
        """Return a context for long work that a stop may end at once; see `Guard.interruptible`."""
        guard = cls.guard_of(trainer)
        return nullcontext() if guard is None else guard.interruptible()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Install the signal handlers, and connect the processes."""
        without_lightnings_handlers(trainer)
        saved = "a checkpoint is saved after this step"
        self.guard.notice = saved if stage == "fit" else "the finished batches are kept"
        self.guard.start(trainer.global_rank, trainer.world_size, trainer.num_nodes == 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave after a signal, once training would resume exactly."""
        if resumes_exactly_after(trainer, batch_idx):
            self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save and leave after a signal in the epoch's last step or its validation."""
        if self.guard.at_boundary():
            trainer.save_checkpoint(self.path)
            self.guard.leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers; an error of this process alone must not keep the others waiting."""
        self.guard.restore()
        if not isinstance(exception, SystemExit):
            self.guard.failed()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self.guard.end()
