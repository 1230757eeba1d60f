"""Train by a recipe, then attack the best checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

from robustlit.experiment.build import build_data, build_module, fit_defense
from robustlit.experiment.checkpoints import BEST, LAST, SaveLast, keep_best
from robustlit.experiment.gate import gate_of_finished
from robustlit.experiment.outcome import close, death_explained, measure, stop_code
from robustlit.experiment.plan import Plan, fits_defense, has_own_callbacks, plan_training
from robustlit.experiment.resume_training import StartResumed, check_length
from robustlit.experiment.run_folder import in_one_line, removed_before_a_step, removed_on_failure, write_recipe
from robustlit.experiment.trainer import make_run, prepare_process
from robustlit.processes import exit_code, leave_on_signals
from robustlit.tracking.console import is_main_process, say
from robustlit.tracking.logger import failure_ends_wandb
from robustlit.training import read_checkpoint


@leave_on_signals()
def train(config: DictConfig, *, command: str | None = None, label: str = "") -> int:
    """Train by a recipe, then attack the best checkpoint; fit instead a defense that needs no training of its own.

    Args:
        config: Composed by Hydra; it is set read-only.
        command: The command line, as typed, stored in the run directory.
        label: What tells this run from its neighbours, added to the name of a run that is not given one.

    Returns:
        The exit code.

    Raises:
        ConfigError, ValueError, DataError, CheckpointError, FileExistsError: Before anything is computed.
    """
    prepare_process()
    with in_one_line():
        plan = plan_training(config, command, label)
    if isinstance(plan, Path):
        return gate_of_finished(plan, config)
    try:
        return _train(plan)
    finally:
        if plan.lock is not None:
            plan.lock.release()


def _train(plan: Plan) -> int:
    started, checkpoints, resume = time.monotonic(), plan.run_dir / "checkpoints", None
    with in_one_line(), removed_on_failure(plan.new_run_dir):
        pl.seed_everything(plan.seed, workers=True, verbose=False)
        data = build_data(plan)
        module, recipe = build_module(plan, data)
        unknown = fits_defense(plan.config) or has_own_callbacks(plan.config)
        best = keep_best(checkpoints, plan.config.monitor, module, checked=not unknown)
        last = SaveLast(checkpoints, plan.config.get("checkpoint_minutes"))
        if plan.resumed is None:
            write_recipe(plan.run_dir, recipe, plan.command)
        else:
            check_length(plan, module, data)
            resume = StartResumed(plan.resumed, plan.run_dir, recipe, plan.command)
        run = make_run(plan, module, data, recipe, best, last, resume)
        if fits_defense(plan.config):
            fit_defense(module, data, run.trainer.strategy.root_device, plan.seed, checkpoints / BEST)
    if fits_defense(plan.config):
        return measure(run, {"train": time.monotonic() - started})
    ckpt_path, step = (plan.resumed.checkpoint, plan.resumed.step) if plan.resumed else (None, 0)
    try:
        before = removed_before_a_step(plan.new_run_dir, run.trainer, step)
        with before, failure_ends_wandb(run.trainer), death_explained(run):
            run.trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as stop:
        code = stop_code(run, stop)
        if (path := checkpoints / LAST).exists() and is_main_process():
            step = read_checkpoint(path)["global_step"]
            how = "interrupted" if code >= exit_code(0) else "the last checkpoint is"
            say(f"{how} at step {step}; to go on: the same command with resume=auto, or ckpt_path={path}")
        close(run, code)
        return code
    if not best.best_model_path and not plan.trainer["fast_dev_run"]:
        say("training ended before its first validation: without a best checkpoint the last weights are attacked")
    checkpoint = None if plan.trainer["fast_dev_run"] else best.best_model_path or None  # fast_dev_run saves none
    return measure(run, {"train": last.seconds}, checkpoint)
