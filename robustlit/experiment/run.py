"""A run, from a composed recipe to results.json: assemble, train, attack the best checkpoint, write."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from robustlit.experiment.build import fill_model, fit_defense, make_module, make_trainer, needs_no_training
from robustlit.experiment.preflight import check_takes
from robustlit.experiment.recipes import ConfigError, check_complete, check_keys, check_verdict, read_fractions, stored
from robustlit.experiment.report import print_report, print_verdict
from robustlit.experiment.results_json import summarise
from robustlit.experiment.resume import Resumed
from robustlit.experiment.run_folder import make_run_dir, remove_empty, removed_on_failure, resumed_run, write_config
from robustlit.objectives import Standard
from robustlit.results import FAIL, Accuracy
from robustlit.tracking.console import is_main_process, say
from robustlit.tracking.run_end import end_in_wandb, failure_ends_wandb, summarise_in_wandb
from robustlit.training import RobustClassifier, read_checkpoint
from robustlit.training.checkpoint import check_trusted, classifier_of

INTERRUPTED = 130
FAILED = 3  # the verdict, under --strict
# What a stored recipe may name besides robustlit's own classes.
_EVALUATION_PACKAGES = ("robustlit.attacks", "robustlit.callbacks", "robustlit.data")
_EVALUATION_ALSO = (
    "pytorch_lightning.Trainer",
    "pytorch_lightning.loggers.CSVLogger",
    "robustlit.callbacks.wandb_logger",
)


def train(config: DictConfig) -> int:
    """Trains by a recipe, then attacks the best checkpoint; returns the exit code.

    A defense that needs no training beyond its classifier's is fitted instead.

    Raises:
        ConfigError, ValueError, DataError, CheckpointError, FileExistsError: before anything is computed.
    """
    _prepare(config)
    if needs_no_training(config) and config.ckpt_path is not None:
        raise ConfigError(
            "there is nothing to resume: this recipe fits a defense in one go; leave ckpt_path out, and give a trained "
            "classifier as base=RUN (runs/NAME/checkpoints/base.ckpt, where an earlier run trained one)"
        )
    resumed = resumed_run(config)
    run = make_run_dir(config, resumed)
    started = time.monotonic()
    with removed_on_failure(None if resumed else run):
        trainer, module, data, sweep, best = _assemble(config, run)
        if needs_no_training(config):
            fit_defense(module, data, trainer.strategy.root_device, config.seed, run / "checkpoints" / "best.ckpt")
    if needs_no_training(config):
        return _attack(config, trainer, module, data, sweep, {"train": time.monotonic() - started}, None)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    try:
        with failure_ends_wandb(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    except ConfigError:  # before the first step
        if not resumed:
            remove_empty(run)
        raise
    except SystemExit:  # how Lightning leaves after Ctrl-C
        last = run / "checkpoints" / "last.ckpt"
        if last.exists():
            say(f"interrupted at step {trainer.global_step}; to go on: the same command with ckpt_path={last}")
        _close(trainer, code=INTERRUPTED)
        return INTERRUPTED
    seconds["train"] = time.monotonic() - started
    if not best.best_model_path and not config.trainer.fast_dev_run:
        say("training ended before its first validation: the last weights are attacked, there is no best checkpoint")
    return _attack(config, trainer, module, data, sweep, seconds, best.best_model_path or None)


def evaluate(checkpoint: str | Path, config: DictConfig, trusted: Sequence[str] = (), *, strict: bool = False) -> int:
    """Attacks a checkpoint again by its stored recipe, as changed by overrides; returns the exit code.

    `strict` makes that `FAILED` where the verdict fails, and 1 where none came about.
    """
    _prepare(config)
    read = read_checkpoint(checkpoint)
    read["robustlit"]["config"]["model"] = OmegaConf.to_container(config.model, resolve=True)  # as overridden
    net, _ = classifier_of(read, str(checkpoint), trusted=trusted)
    for section in ("data", "sweep", "trainer", "logger", "callbacks"):
        check_trusted(OmegaConf.to_container(config[section]), (*_EVALUATION_PACKAGES, *trusted), _EVALUATION_ALSO)
    return _evaluate_net(net, config, str(checkpoint), strict=strict)


def evaluate_own(net: nn.Module, config: DictConfig, origin: str, *, strict: bool = False) -> int:
    """As `evaluate`, for a net that is no checkpoint of ours."""
    _prepare(config)
    return _evaluate_net(net, config, origin, strict=strict)


def _evaluate_net(net: nn.Module, config: DictConfig, origin: str, *, strict: bool = False) -> int:
    """Attacks a net by a composed recipe into a run folder of its own; `origin` says where it is from."""
    group = config.name
    in_wandb = config.logger.get("group") or group  # read while it may still refer to the training's name
    config.name = f"{group}-eval"
    run = make_run_dir(config, None)
    config.run_dir, config.name = str(run), run.name
    with removed_on_failure(run):
        if "job_type" in config.logger:
            config.logger.job_type, config.logger.group, config.logger.run_id = "eval", in_wandb, uuid.uuid4().hex[:8]
        write_config(run, {**stored(config), "ckpt_path": origin})
        pl.seed_everything(config.seed, workers=True, verbose=False)
        data = instantiate(config.data)
        check_takes(net, data, origin)
        module = RobustClassifier(net, Standard(), torch.optim.Adam, num_classes=data.num_classes, seed=config.seed)
        trainer, sweep = make_trainer(config, [])
        code = _attack(config, trainer, module, data, sweep, {}, None, strict=strict)
    if code == INTERRUPTED:
        remove_empty(run)
    return code


# Assembling


def _quiet() -> None:
    """Lightning's own notices say nothing that this program's lines do not; its warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*treespec.*", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the data are in memory
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _prepare(config: DictConfig) -> None:
    _quiet()
    check_keys(config)
    config.recipe = config.recipe  # resolves ${hydra:...} while Hydra is there to answer
    read_fractions(config)
    check_complete(config)
    check_verdict(config)


def _assemble(
    config: DictConfig, run: Path
) -> tuple[pl.Trainer, pl.LightningModule, pl.LightningDataModule, Any, ModelCheckpoint]:
    """Everything that a training run needs, built from its recipe: trainer, module, data, sweep, best checkpoint."""
    config.run_dir, config.name = str(run), config.name or run.name
    if "run_id" in config.logger:
        config.logger.run_id = _run_id(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data)
    if is_main_process():  # before anything is left behind; Lightning does it again, at no cost
        data.prepare_data()
        data.setup("fit")
    fill_model(config, data)
    module = make_module(config, data, run)
    if config.ckpt_path is None:
        write_config(run, stored(config))
    best = ModelCheckpoint(
        dirpath=run / "checkpoints",
        filename="best",
        monitor=config.monitor,
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    resumed = [] if config.ckpt_path is None else [Resumed(run, stored(config))]
    trainer, sweep = make_trainer(config, [best, *resumed])
    return trainer, module, data, sweep, best


def _run_id(config: DictConfig) -> str:
    """The W&B run: a sweep's, else that of the resumed checkpoint, so that its curves go on, else a new one."""
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):  # chosen by `wandb agent`, which W&B obeys
        return os.environ["WANDB_RUN_ID"]
    if config.ckpt_path is not None:
        stored = read_checkpoint(config.ckpt_path)["robustlit"]["config"] or {}
        if run_id := stored.get("logger", {}).get("run_id"):
            return str(run_id)
    return config.logger.run_id or uuid.uuid4().hex[:8]


# Attacking and writing


def _attack(
    config: DictConfig,
    trainer: pl.Trainer,
    module: Any,
    data: Any,
    sweep: Any,
    seconds: dict[str, float],
    checkpoint: str | None,
    *,
    strict: bool = False,
) -> int:
    started, code = time.monotonic(), 0
    if config.trainer.fast_dev_run:  # nothing was saved
        checkpoint = None
    try:
        with failure_ends_wandb(trainer):
            trainer.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    except SystemExit:  # how Lightning leaves after Ctrl-C
        code = INTERRUPTED
        if sweep is None or sweep.evaluation is None:
            _close(trainer, code)
            return code
    seconds["evaluate"] = time.monotonic() - started
    if trainer.is_global_zero:
        with failure_ends_wandb(trainer):
            reported = _report(config, trainer, module, data, sweep, seconds, strict=strict)
        code = code or reported
    _close(trainer, code)
    return code


def _report(
    config: DictConfig,
    trainer: pl.Trainer,
    module: Any,
    data: Any,
    sweep: Any,
    seconds: dict[str, float],
    *,
    strict: bool,
) -> int:
    """Writes results.json, then says what came out; returns the exit code."""
    evaluation = None if sweep is None else sweep.evaluation
    clean = evaluation.clean_accuracy if evaluation is not None else _clean_of(trainer, data)
    results = summarise(config, module.net, evaluation, clean, seconds)
    own = module.results() if hasattr(module, "results") else {}
    results |= own
    judge = next((c for c in trainer.callbacks if hasattr(c, "verdict")), None)  # type: ignore[attr-defined]
    verdict = None if judge is None else judge.verdict
    if verdict is not None:
        results["verdict"] = {"profile": verdict.profile, "status": verdict.status, **verdict.counts}
    summarise_in_wandb(trainer, results)
    failed = getattr(sweep, "write_error", None)
    try:
        (Path(config.run_dir) / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    except OSError as error:
        failed = error
    try:
        print_report(results)
        if verdict is not None:
            print_verdict(verdict)
        for name, found in own.items():
            print(f"{name}: {', '.join(f'{k} {_shown(v)}' for k, v in found.items() if v is not None)}")
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # how rich leaves where the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if failed is not None:
        say(f"error: the results above could not be written to {config.run_dir}: {failed}")
        return 1
    say(f"written to {config.run_dir}")
    if not strict:
        return 0
    if verdict is None:
        cut_short = evaluation is not None and not evaluation.complete
        why = "the sweep was cut short" if cut_short else getattr(judge, "trouble", None) or "none was asked for"
        say(f"error: --strict, but there is no verdict: {why}")
        return 1
    return FAILED if verdict.status == FAIL else 0


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clean_of(trainer: pl.Trainer, data: Any) -> Accuracy:
    n = len(data.test_indices)
    return Accuracy(round(float(trainer.callback_metrics["test/accuracy"]) * n), n)


def _close(trainer: pl.Trainer, code: int) -> None:
    """Ends what outlives a Trainer: the W&B run and the process group."""
    end_in_wandb(trainer, code)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
