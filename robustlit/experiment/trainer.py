"""Make what runs a plan: callbacks, logger and Trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.loggers import WandbLogger

from robustlit.experiment.plan import Plan, Recipe, make


@dataclass(frozen=True)
class Run:
    """A plan, and what was made from it."""

    plan: Plan
    module: Any
    data: Any
    trainer: pl.Trainer
    sweep: Any  # a callback with `evaluation` and `write_error`, such as `AttackSweep`, or None
    judge: Any  # `robustlit.callbacks.Verdict`, or None where no verdict was requested


def make_run(plan: Plan, module: Any, data: Any, recipe: Recipe, *callbacks: pl.Callback | None) -> Run:
    """Return the run of a plan with the recipe's callbacks and more; W&B gets the stored recipe, values resolved."""
    sweep, judge = make(plan.config, "sweep"), None
    recipes_own = [make(plan.config, f"callbacks.{name}") for name in plan.config.callbacks]
    if profile := plan.config.get("verdict"):
        judged = {"norm": plan.norm, "eps": plan.eps, "seed": plan.seed, "folder": f"{plan.run_dir}/evaluation"}
        judge = instantiate({"_target_": "robustlit.callbacks.Verdict", "profile": profile, **judged})
    logger = make(plan.config, "logger")  # last: a server need not hear of a run that cannot start
    if isinstance(logger, WandbLogger):
        resolved = OmegaConf.to_container(OmegaConf.create(recipe), resolve=True)
        logger.log_hyperparams(resolved)  # type: ignore[arg-type]
    trainer = make_trainer(plan, [*recipes_own, *callbacks, sweep, judge], logger=logger or False)
    return Run(plan, module, data, trainer, sweep, judge)


def make_trainer(plan: Plan, callbacks: Sequence[Any], *, logger: Any, **settings: Any) -> pl.Trainer:
    """Return the Trainer of the plan with those callbacks that are not None; `settings` replace the recipe's."""
    trainer: pl.Trainer = instantiate(
        {**plan.trainer, **settings},
        logger=logger,
        callbacks=[callback for callback in callbacks if callback is not None],
        inference_mode=False,  # attacks differentiate during evaluation
        use_distributed_sampler=False,  # the loaders share batches out themselves, and repeat none
        enable_model_summary=False,
        default_root_dir=str(plan.run_dir),
    )
    return trainer


def quiet_lightning() -> None:
    """Silence Lightning's notices, which repeat this program's own lines; its warnings stay."""
    names = ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning.pytorch", "lightning_utilities")
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", message=".*treespec.*", category=category)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the data are in memory
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
