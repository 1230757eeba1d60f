"""Verdict: check whether the sweep's robust accuracy is believable, overstated or undecided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from robustlit.checks import check_choice
from robustlit.classifier import undefended
from robustlit.figures import draw_run
from robustlit.figures.run import write_verdict
from robustlit.results import Verdict as Judged
from robustlit.tracking.evaluation import log_verdict
from robustlit.training.blackbox import distil_small_cnn
from robustlit.verdict import verdict
from robustlit.verdict.judge import PROFILES, quoted_budget

from .attack_sweep import AttackSweep, sweep_before
from .save_on_interrupt import SaveOnInterrupt


class Verdict(pl.Callback):
    """Run the checks of `robustlit.verdict` on the `AttackSweep` before it; write, draw and log what they find.

    It writes `verdict.json` and its figure (PNG, SVG); the sweep's figures are drawn again, as they show the verdict.

    Args:
        profile: "quick" or "full"; "full" distils a substitute to craft on, where the model has no undefended net.
        norm, eps: The quoted budget, which is judged; where no adaptive attack ran at it, or by default, the first
            attack's own.
        seed: Seed of the probes.
        folder: Where to write; None writes nothing.

    Attributes:
        verdict: On the main process after the test, what was found; None where there was nothing to judge.
        trouble: In that case, why.
        write_error: The error that kept a file from being written, if any.

    Raises:
        ValueError: An unknown profile; at the test: no AttackSweep before it.
    """

    def __init__(
        self, profile: str = "quick", *, norm: str | None = None, eps: float | None = None, seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_choice(profile, "profile", PROFILES)
        self.profile, self.norm, self.eps, self.seed = profile, norm, eps, seed
        self.folder = None if folder is None else Path(folder)
        self.verdict: Judged | None = None
        self.trouble: str | None = None
        self.write_error: OSError | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there will be something to judge."""
        self.verdict, self.trouble, self.write_error = None, None, None
        self._sweep(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge, on the main process."""
        sweep, data = self._sweep(trainer), getattr(trainer, "datamodule", None) or trainer.test_dataloaders
        evaluation = sweep.evaluation
        if not trainer.is_global_zero or evaluation is None:
            return
        norm, eps = quoted_budget(evaluation, self.norm, self.eps)
        try:
            with SaveOnInterrupt.interruptible(trainer):
                self.verdict = verdict(
                    evaluation, pl_module.net, data, sweep.sweep.named, norm=norm, eps=eps,  # type: ignore[arg-type]
                    profile=self.profile, substitute=self._substitute(sweep, trainer, pl_module), seed=self.seed,
                )  # fmt: skip
        except ValueError as error:  # nothing to judge is no reason to lose the evaluation
            self.trouble = str(error)
            rank_zero_warn(f"there is no verdict: {error}")
            return
        try:
            if self.folder is not None:
                write_verdict(self.verdict, self.folder, evaluation.n)
                if sweep.folder is not None:
                    draw_run(evaluation, sweep.folder, list(sweep.curve_ends), verdict=self.verdict)
        except OSError as error:
            self.write_error = error
            rank_zero_warn(f"could not write the verdict: {error}")
        for logger in trainer.loggers:
            log_verdict(logger, self.verdict, evaluation.n)

    def _substitute(self, sweep: AttackSweep, trainer: pl.Trainer, pl_module: pl.LightningModule) -> nn.Module | None:
        """Return the net that check 14 crafts on, where the model has no defense that could be removed."""
        net: Any = pl_module.net
        if sweep.sweep.substitute is not None or self.profile != "full" or undefended(net) is not net:
            return sweep.sweep.substitute
        made = distil_small_cnn(trainer, pl_module, sweep.substitute_images, sweep.sweep.seed)
        return made.net if made else None

    def _sweep(self, trainer: pl.Trainer) -> AttackSweep:
        sweep = sweep_before(self, trainer)
        if sweep is None:
            raise ValueError("Verdict judges an AttackSweep: put one before it in the Trainer's callbacks")
        return sweep
