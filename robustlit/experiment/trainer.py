"""Make what runs a plan: callbacks, logger and Trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from robustlit.data.base import ClassificationData
from robustlit.evaluation.adversarials import check_names
from robustlit.experiment.checkpoints import WholeFiles
from robustlit.experiment.plan import Plan, Recipe, make
from robustlit.processes import Guard, keep_freed_memory, watch_parent, without_lightnings_handlers
from robustlit.tracking.console import is_main_process
from robustlit.training import AveragedWeights


@dataclass(frozen=True)
class Run:
    """A plan, and what was made from it."""

    plan: Plan
    module: Any
    data: Any
    trainer: pl.Trainer
    sweep: Any  # a callback with `evaluation` and `write_error`, such as `AttackSweep`, or None
    judge: Any  # `robustlit.callbacks.Verdict`, or None where no verdict was requested

    @property
    def guard(self) -> Guard | None:
        """What the run does on signals and deaths; None where the recipe drops `callbacks.interrupt`."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((c.guard for c in callbacks if isinstance(getattr(c, "guard", None), Guard)), None)


def make_run(plan: Plan, module: Any, data: Any, recipe: Recipe, *callbacks: pl.Callback | None) -> Run:
    """Return the run of a plan with the recipe's callbacks and more; W&B gets the stored recipe, values resolved."""
    sweep, judge = make(plan.config, "sweep"), None
    if hasattr(sweep, "keeps_parts"):
        sweep.keeps_parts = True  # until results.json is written
        sweep.save_adversarials = plan.config.get("save_adversarials") is True
        if sweep.save_adversarials:  # here: an error after the training would come late
            check_names(sweep.sweep)
    recipes_own = [make(plan.config, f"callbacks.{name}") for name in plan.config.callbacks]
    if profile := plan.config.get("verdict"):
        judged = {"norm": plan.norm, "eps": plan.eps, "seed": plan.seed, "folder": f"{plan.run_dir}/evaluation"}
        judge = instantiate({"_target_": "robustlit.callbacks.Verdict", "profile": profile, **judged})
    logger = make(plan.config, "logger")  # last: a server need not hear of a run that cannot start
    if isinstance(logger, CSVLogger) and is_main_process():
        keep_metrics(Path(logger.log_dir) / "metrics.csv")
    if isinstance(logger, WandbLogger):
        resolved = OmegaConf.to_container(OmegaConf.create(recipe), resolve=True)
        logger.log_hyperparams(resolved)  # type: ignore[arg-type]
    # Those that draw examples of the sweep come after it, as in Lightning a callback sees what earlier ones made.
    drawing = [c for c in recipes_own if getattr(c, "after_sweep", False)]
    others = [c for c in recipes_own if c not in drawing]
    # First, so that what saves after a step saves the average after that step.
    average = AveragedWeights(plan.config.ema) if plan.config.get("ema") is not None else None
    trainer = make_trainer(plan, [average, *others, *callbacks, sweep, *drawing, judge], logger=logger or False)
    if is_main_process() and isinstance(data, ClassificationData):  # here: one line, and before a training
        data.check_shares(trainer.world_size)
    run = Run(plan, module, data, trainer, sweep, judge)
    if run.guard is not None:
        run.guard.watch_children(trainer.strategy.launcher)
    return run


def keep_metrics(path: Path) -> None:
    """Rename the metrics that an earlier part of a resumed run logged: Lightning's CSVLogger would delete them."""
    if path.is_file():
        parts = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
        path.rename(next(part for part in parts if not part.exists()))


def make_trainer(plan: Plan, callbacks: Sequence[Any], *, logger: Any, **settings: Any) -> pl.Trainer:
    """Return the Trainer of the plan with those callbacks that are not None; `settings` replace the recipe's.

    Raises:
        ValueError: A strategy that starts its processes by multiprocessing (ddp_spawn, ddp_fork, ddp_notebook).
    """
    plugins = plan.trainer.get("plugins") or []
    trainer: pl.Trainer = instantiate(
        {**plan.trainer, **settings},
        logger=logger,
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), WholeFiles()],
        callbacks=[callback for callback in callbacks if callback is not None],
        inference_mode=False,  # attacks differentiate during evaluation
        use_distributed_sampler=False,  # the loaders share batches out themselves, and repeat none
        enable_model_summary=False,
        default_root_dir=str(plan.run_dir),
    )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"trainer.strategy={plan.trainer.get('strategy')} starts its processes by multiprocessing, and a run's "
            "processes are started as commands of their own: use trainer.strategy=ddp"
        )
    without_lightnings_handlers(trainer)
    return trainer


def prepare_process() -> None:
    """Prepare a process that trains or evaluates; to be called before anything else."""
    _quiet_lightning()
    watch_parent()
    keep_freed_memory()


def _quiet_lightning() -> None:
    """Silence Lightning's notices, which repeat this program's own lines; its warnings stay."""
    names = ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning.pytorch", "lightning_utilities")
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", message=".*treespec.*", category=category)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the data are in memory
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # docs/cluster.md starts by srun
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    if "SLURM_JOB_ID" not in os.environ:  # in a job the hint is one
        warnings.filterwarnings("ignore", message="The `srun` command is available")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
