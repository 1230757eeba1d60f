"""Verdict: whether the sweep's robust accuracy is to be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from robustlit.classifier import undefended
from robustlit.evaluation import verdict
from robustlit.evaluation.figures import draw_run, run_name, save_figure, verdict_figure
from robustlit.evaluation.verdict import Verdict as Judged
from robustlit.evaluation.verdict.judge import PROFILES

from .attack_sweep import AttackSweep


class Verdict(pl.Callback):
    """The checks of `robustlit.evaluation.verdict` on the `AttackSweep` before it, written, drawn and logged.

    `verdict.json` and its figure (PNG, SVG); the sweep's figures are drawn again, as they carry the verdict.

    Args:
        profile: "quick" or "full"; that distils a substitute to craft on, where the model names no undefended net.
        seed: of the probes.
        folder: where that is written; None writes nothing.

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
                substitute=self._substitute(sweep, trainer, pl_module), seed=self.seed,
            )  # fmt: skip
        except ValueError as error:  # nothing to judge is no reason to lose the evaluation
            rank_zero_warn(f"there is no verdict: {error}")
            return
        if self.folder is not None:
            try:
                self.verdict.save(self.folder)
                figure = verdict_figure(self.verdict, name=run_name(self.folder), n=sweep.evaluation.n)
                save_figure(figure, self.folder / "verdict")
                if sweep.folder is not None:
                    draw_run(sweep.evaluation, sweep.folder, list(sweep.curve_ends), verdict=self.verdict)
            except OSError as error:
                rank_zero_warn(f"could not write the verdict to {self.folder}: {error}")
        for logger in trainer.loggers:
            try:
                _log(logger, self.verdict, sweep.evaluation.n)
            except Exception as error:  # loggers raise many kinds, none worth losing a verdict for
                rank_zero_warn(f"{type(logger).__name__} did not take the verdict: {type(error).__name__}: {error}")

    def _substitute(self, sweep: AttackSweep, trainer: pl.Trainer, pl_module: pl.LightningModule) -> nn.Module | None:
        """The net that check 14 crafts on where the model has no defense that could be taken away."""
        if sweep.sweep.substitute is not None or self.profile != "full":
            return sweep.sweep.substitute
        net: Any = pl_module.net
        ours = trainer.world_size == 1 and hasattr(getattr(trainer, "datamodule", None), "tensors")
        return sweep.distilled(trainer, pl_module) if ours and undefended(net) is net else None

    def _sweep(self, trainer: pl.Trainer) -> AttackSweep:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        sweeps = [callback for callback in before if isinstance(callback, AttackSweep)]
        if not sweeps:
            raise ValueError("Verdict judges an AttackSweep: put one before it in the Trainer's callbacks")
        return sweeps[-1]


def _log(logger: Any, found: Judged, n: int) -> None:
    counts = {f"verdict/{status.lower()}": float(count) for status, count in found.counts.items()}
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(counts)
        return
    import wandb

    rows = [[c.number, c.name, c.status, c.finding, c.figure, c.threshold, c.source] for c in found.checks]
    columns: list[str | int] = ["number", "check", "status", "finding", "figure", "threshold", "source"]
    run = logger.experiment
    run.summary.update({"verdict": found.status, **counts})
    run.log({"figures/verdict": wandb.Image(verdict_figure(found, n=n))})
    run.log({"verdict/table": wandb.Table(columns=columns, data=rows)})
