"""Train by a recipe, then attack the best checkpoint."""

from __future__ import annotations

import time

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from robustlit.experiment.build import build_data, build_module, fit_defense
from robustlit.experiment.outcome import INTERRUPTED, close, measure
from robustlit.experiment.plan import fits_defense, plan_training
from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.run_folder import StartResumed, remove_empty, removed_on_failure, write_recipe
from robustlit.experiment.trainer import make_run, quiet_lightning
from robustlit.tracking.console import say
from robustlit.tracking.logger import failure_ends_wandb


def train(config: DictConfig, *, command: str | None = None) -> int:
    """Train by a recipe, then attack the best checkpoint; fit instead a defense that needs no training of its own.

    Args:
        config: Composed by Hydra; it is set read-only.
        command: The command line, as typed, stored in the run directory.

    Returns:
        The exit code.

    Raises:
        ConfigError, ValueError, DataError, CheckpointError, FileExistsError: Before anything is computed.
    """
    quiet_lightning()
    plan = plan_training(config, command)
    started, checkpoints, resume = time.monotonic(), plan.run_dir / "checkpoints", None
    with removed_on_failure(plan.new_run_dir):
        pl.seed_everything(plan.seed, workers=True, verbose=False)
        data = build_data(plan)
        module, recipe = build_module(plan, data)
        best = ModelCheckpoint(
            checkpoints, "best", monitor=plan.config.monitor, mode="max", save_last=True, enable_version_counter=False
        )
        if plan.resumed is None:
            write_recipe(plan.run_dir, recipe, command)
        else:
            resume = StartResumed(plan.resumed, plan.run_dir, recipe, command)
        run = make_run(plan, module, data, recipe, best, resume)
        if fits_defense(plan.config):
            fit_defense(module, data, run.trainer.strategy.root_device, plan.seed, checkpoints / "best.ckpt")
    if not fits_defense(plan.config):
        started = time.monotonic()
        try:
            with failure_ends_wandb(run.trainer):
                run.trainer.fit(module, datamodule=data, ckpt_path=plan.config.ckpt_path, weights_only=True)
        except ConfigError:  # before the first step
            remove_empty(plan.new_run_dir)
            raise
        except SystemExit:  # how Lightning leaves after Ctrl-C
            if (last := checkpoints / "last.ckpt").exists():
                say(f"interrupted at step {run.trainer.global_step}; to go on: the same command with ckpt_path={last}")
            close(run.trainer, INTERRUPTED)
            return INTERRUPTED
        if not best.best_model_path and not plan.trainer["fast_dev_run"]:
            say("training ended before its first validation: without a best checkpoint the last weights are attacked")
    checkpoint = None if plan.trainer["fast_dev_run"] else best.best_model_path or None  # fast_dev_run saves none
    return measure(run, {"train": time.monotonic() - started}, checkpoint)
