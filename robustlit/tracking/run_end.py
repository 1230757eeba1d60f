"""A run's end in W&B: what ranks it there, and that it ends there however it ends here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from robustlit.tracking.console import say


def summarise_in_wandb(trainer: pl.Trainer, results: dict[str, Any]) -> None:
    """What a W&B table of runs ranks by besides the accuracies, which `AttackSweep` logs."""
    also = {"parameters": results["parameters"], **{f"seconds/{k}": v for k, v in results["seconds"].items()}}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            try:
                logger.experiment.summary.update(also)
            except Exception as error:  # wandb raises many kinds, none worth losing results for
                say(f"W&B did not take the run's times: {type(error).__name__}: {error}")


def end_in_wandb(trainer: pl.Trainer, code: int) -> None:
    """Ends the W&B run of a Trainer, if it has one, and says what was not uploaded."""
    if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers) or not trainer.is_global_zero:
        return
    try:
        ends = [logger.finish for logger in trainer.loggers if hasattr(logger, "finish")]
        if not ends:  # a logger of the user's own
            import wandb

            wandb.finish(exit_code=code)
        for finish in ends:
            if trouble := finish(code):
                say(trouble)
    except Exception as error:  # the run is done; W&B's trouble is only said
        say(f"W&B did not close cleanly: {error}")


@contextmanager
def failure_ends_wandb(trainer: pl.Trainer) -> Iterator[None]:
    """A run that fails ends its W&B run, or the next job of a multirun would log into it."""
    try:
        yield
    except Exception:
        end_in_wandb(trainer, 1)
        raise
