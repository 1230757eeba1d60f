"""The start of a training that is resumed: check its length, store its recipe, set aside the results of before."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from robustlit.experiment.model_card import NAME as CARD
from robustlit.experiment.plan import Plan
from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.resume import RESULTS, Recipe, Resumed
from robustlit.experiment.run_folder import write_recipe
from robustlit.experiment.trainer import make_trainer
from robustlit.tracking.console import is_main_process, say
from robustlit.training import RobustClassifier

EVALUATION = "evaluation"


def check_length(plan: Plan, module: pl.LightningModule, data: Any) -> None:
    """Raise a ConfigError if a resumed run outlasts the checkpoint's schedule, before a logger hears of the run.

    A schedule is restored with the length it was made for (`OneCycleLR.total_steps`), whatever the run's length. The
    optimizers are built for a Trainer that never runs. `StartResumed` checks modules that are not robustlit's own.
    """
    if plan.resumed is None or not isinstance(module, RobustClassifier) or not is_main_process():
        return
    trainer = make_trainer(plan, [], logger=False)
    trainer.datamodule = data  # type: ignore[attr-defined]
    module.trainer = data.trainer = trainer
    trainer.strategy.connect(module)
    trainer.strategy.setup_optimizers(trainer)
    _compare(plan.resumed, trainer)
    module.trainer = data.trainer = None


class StartResumed(pl.Callback):
    """Write the recipe of a resumed run; a refused one leaves the `config.yaml` of its directory unchanged."""

    def __init__(self, resumed: Resumed, run_dir: Path, recipe: Recipe, command: str | None) -> None:
        self.resumed, self.run_dir, self.recipe, self.command = resumed, run_dir, recipe, command

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the lengths of both schedules, before the first step, and write the recipe."""
        _compare(self.resumed, trainer)
        write_recipe(self.run_dir, self.recipe, self.command)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set aside the results of a run that is trained for longer: they are of weights that now change."""
        if trainer.is_global_zero and (kept := set_results_aside(self.run_dir, self.resumed.step)) is not None:
            say(f"the run is trained for longer: its results so far are kept in {kept}")


def _compare(resumed: Resumed, trainer: pl.Trainer) -> None:
    for length, new in zip(resumed.schedules, trainer.lr_scheduler_configs, strict=False):
        steps = getattr(new.scheduler, "total_steps", None)
        if length is not None and steps is not None and steps > length:
            epochs = resumed.recipe.get("trainer", {}).get("max_epochs")
            raise ConfigError(
                f"the checkpoint's schedule ends after {length} steps, and this run would take {steps}: resume "
                f"with the same data and trainer settings (its trainer.max_epochs was {epochs}), or start anew, "
                "without ckpt_path"
            )


def set_results_aside(run_dir: Path, step: int) -> Path | None:
    """Move results.json, the model card and `evaluation/` into `results_of_step_N/` of the run directory.

    No command reads that folder by itself; `Evaluation.load(FOLDER)` reads the table in it.

    Args:
        run_dir: The run directory.
        step: N, the step of the run's last checkpoint.

    Returns:
        The new folder, None where there were no results.
    """
    # In this order: without results.json the run is unfinished, wherever a kill stops the moves.
    there = [place for name in (RESULTS, CARD, EVALUATION) if (place := run_dir / name).exists()]
    if not there:
        return None
    names = (f"results_of_step_{step}" + (f"-{number}" if number > 1 else "") for number in count(1))
    kept = next(place for name in names if not (place := run_dir / name).exists())
    kept.mkdir()
    for place in there:
        place.rename(kept / place.name)
    return kept
