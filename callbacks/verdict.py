"""Verdict: whether the sweep's robust accuracy is to be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from robustlit.evaluation import verdict
from robustlit.evaluation.verdict import Verdict as Judged
from robustlit.evaluation.verdict.judge import PROFILES

from .attack_sweep import AttackSweep


class Verdict(pl.Callback):
    """The checks of `robustlit.evaluation.verdict` on the `AttackSweep` before it, written and logged.

    Args:
        profile: "quick" or "full".
        seed: of the probes.
        folder: where `verdict.json` is written; None writes nothing.

    Attributes:
        verdict: on the main process after the test, what was found; None where there was nothing to judge.

    Raises:
        ValueError: an unknown profile; at the test: no AttackSweep before it.
    """

    def __init__(self, profile: str = "quick", *, seed: int = 0, folder: str | Path | None = None) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
        self.profile, self.seed = profile, seed
        self.folder = None if folder is None else Path(folder)
        self.verdict: Judged | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks whether there will be something to judge."""
        self.verdict = None
        self._sweep(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judges, on the main process."""
        sweep, data = self._sweep(trainer), getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or sweep.evaluation is None:
            return
        loader = data if data is not None else trainer.test_dataloaders
        try:
            net: Any = pl_module.net
            self.verdict = verdict(
                sweep.evaluation, net, loader, sweep.sweep.named, profile=self.profile,
                substitute=sweep.sweep.substitute, seed=self.seed,
            )  # fmt: skip
        except ValueError as error:  # nothing to judge is no reason to lose the evaluation
            rank_zero_warn(f"there is no verdict: {error}")
            return
        if self.folder is not None:
            try:
                self.verdict.save(self.folder)
            except OSError as error:
                rank_zero_warn(f"could not write the verdict to {self.folder}: {error}")
        for logger in trainer.loggers:
            try:
                _log(logger, self.verdict)
            except Exception as error:  # loggers raise many kinds, none worth losing a verdict for
                rank_zero_warn(f"{type(logger).__name__} did not take the verdict: {type(error).__name__}: {error}")

    def _sweep(self, trainer: pl.Trainer) -> AttackSweep:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        sweeps = [callback for callback in before if isinstance(callback, AttackSweep)]
        if not sweeps:
            raise ValueError("Verdict judges an AttackSweep: put one before it in the Trainer's callbacks")
        return sweeps[-1]


def _log(logger: Any, found: Judged) -> None:
    counts = {f"verdict/{status.lower()}": float(count) for status, count in found.counts.items()}
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(counts)
        return
    import wandb

    rows = [[c.number, c.name, c.status, c.finding, c.figure, c.threshold, c.source] for c in found.checks]
    columns: list[str | int] = ["number", "check", "status", "finding", "figure", "threshold", "source"]
    logger.experiment.log({"verdict/table": wandb.Table(columns=columns, data=rows)})
    logger.experiment.summary.update({"verdict": found.status, **counts})
