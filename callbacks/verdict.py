"""Verdict: whether the sweep's robust accuracy is to be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from robustlit.classifier import undefended
from robustlit.figures import draw_run, run_name, save_figure, verdict_figure
from robustlit.results import Evaluation
from robustlit.results import Verdict as Judged
from robustlit.verdict import verdict
from robustlit.verdict.judge import PROFILES

from .attack_sweep import AttackSweep


class Verdict(pl.Callback):
    """The checks of `robustlit.verdict` on the `AttackSweep` before it, written, drawn and logged.

    `verdict.json` and its figure (PNG, SVG); the sweep's figures are drawn again, as they carry the verdict.

    Args:
        profile: "quick" or "full"; that distils a substitute to craft on, where the model names no undefended net.
        norm, eps: the budget whose accuracy is quoted, so that this is what is judged; where no attack that knows the
            defense ran at it, or without, the first one's own.
        seed: of the probes.
        folder: where that is written; None writes nothing.

    Attributes:
        verdict: on the main process after the test, what was found; None where there was nothing to judge.
        trouble: then, why there was nothing.

    Raises:
        ValueError: an unknown profile; at the test: no AttackSweep before it.
    """

    def __init__(
        self,
        profile: str = "quick",
        *,
        norm: str | None = None,
        eps: float | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
        self.profile, self.norm, self.eps, self.seed = profile, norm, eps, seed
        self.folder = None if folder is None else Path(folder)
        self.verdict: Judged | None = None
        self.trouble: str | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks whether there will be something to judge."""
        self.verdict, self.trouble = None, None
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
                sweep.evaluation, net, loader, sweep.sweep.named, **self._quoted(sweep.evaluation),
                profile=self.profile, substitute=self._substitute(sweep, trainer, pl_module), seed=self.seed,
            )  # fmt: skip
        except ValueError as error:  # nothing to judge is no reason to lose the evaluation
            self.trouble = str(error)
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

    def _quoted(self, evaluation: Evaluation) -> dict[str, Any]:
        """The budget that is quoted, if it was attacked."""
        eps = self.eps
        norms = [
            (attack, known) for attack, known in evaluation.runs if self.norm in (None, evaluation.norm_of(attack))
        ]
        budgets = [b for attack, known in norms if known == "adaptive" for b in evaluation.budgets(attack, known)]
        attacked = eps is not None and any(abs(eps - budget) < 1e-9 for budget in budgets)
        return {"norm": self.norm, "eps": eps} if attacked else {}

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
