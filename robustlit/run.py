"""A run, from a composed recipe to results.json: assemble, train, attack the best checkpoint, write."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from torch import nn

from robustlit.assembly import fill_model, fit_defense, make_module, make_trainer, needs_no_training
from robustlit.config import ConfigError, check_complete, check_keys, read_fractions, stored
from robustlit.console import is_main_process, say
from robustlit.evaluation import Accuracy, Evaluation
from robustlit.evaluation.report import print_report, print_verdict
from robustlit.evaluation.verdict import FAIL
from robustlit.objectives import Standard
from robustlit.training import CheckpointError, RobustClassifier, read_checkpoint
from robustlit.training.checkpoint import check_trusted, classifier_of

RUN_DIR_VARIABLE = "ROBUSTLIT_RUN_DIR"  # how the processes that Lightning starts learn the folder of the first
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
    resumed = _resumed_run(config)
    run = make_run_dir(config, resumed)
    started = time.monotonic()
    with _removed_on_failure(None if resumed else run):
        trainer, module, data, sweep, best = _assemble(config, run)
        if needs_no_training(config):
            fit_defense(module, data, trainer.strategy.root_device, config.seed, run / "checkpoints" / "best.ckpt")
    if needs_no_training(config):
        return _attack(config, trainer, module, data, sweep, {"train": time.monotonic() - started}, None)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    try:
        with _failure_ends_wandb(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
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

    `strict` makes that `FAILED` where the verdict fails.
    """
    _prepare(config)
    read = read_checkpoint(checkpoint)
    read["robustlit"]["config"]["model"] = OmegaConf.to_container(config.model, resolve=True)  # as overridden
    net, _ = classifier_of(read, str(checkpoint), trusted=trusted)
    for section in ("data", "sweep", "trainer", "logger", "callbacks"):
        check_trusted(OmegaConf.to_container(config[section]), (*_EVALUATION_PACKAGES, *trusted), _EVALUATION_ALSO)
    return evaluate_net(net, config, str(checkpoint), strict=strict)


def evaluate_net(net: nn.Module, config: DictConfig, origin: str, *, strict: bool = False) -> int:
    """Attacks a net by a composed recipe into a run folder of its own; `origin` says where it is from."""
    group = config.name
    in_wandb = config.logger.get("group") or group  # read while it may still refer to the training's name
    config.name = f"{group}-eval"
    run = make_run_dir(config, None)
    config.run_dir, config.name = str(run), run.name
    with _removed_on_failure(run):
        if "job_type" in config.logger:
            config.logger.job_type, config.logger.group, config.logger.run_id = "eval", in_wandb, uuid.uuid4().hex[:8]
        _write_config(run, {**stored(config), "ckpt_path": origin})
        pl.seed_everything(config.seed, workers=True, verbose=False)
        data = instantiate(config.data)
        module = RobustClassifier(net, Standard(), torch.optim.Adam, num_classes=data.num_classes, seed=config.seed)
        trainer, sweep = make_trainer(config, [])
    return _attack(config, trainer, module, data, sweep, {}, None, strict=strict)


def evaluate_own(net: nn.Module, config: DictConfig, origin: str, *, strict: bool = False) -> int:
    """As `evaluate`, for a net that is no checkpoint of ours."""
    _prepare(config)
    return evaluate_net(net, config, origin, strict=strict)


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
    _write_config(run, stored(config))
    best = ModelCheckpoint(
        dirpath=run / "checkpoints",
        filename="best",
        monitor=config.monitor,
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    trainer, sweep = make_trainer(config, [best])
    return trainer, module, data, sweep, best


@contextmanager
def _removed_on_failure(run: Path | None) -> Iterator[None]:
    """Takes a new run folder away again when the run cannot even be assembled, and nothing was computed yet."""
    try:
        yield
    except BaseException:
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            with suppress(Exception):  # the failure itself is what is to be told
                wandb.finish(exit_code=1)  # or the next job of a multirun would log into it
        if run is not None and is_main_process() and not any(run.glob("checkpoints/*.ckpt")):
            shutil.rmtree(run, ignore_errors=True)
        raise


def make_run_dir(config: DictConfig, resumed: Path | None) -> Path:
    """The folder of this run, made: `run_dir`, else runs/NAME, else runs/RECIPE numbered to be new.

    Raises:
        FileExistsError: a folder asked for by name exists already; a run never writes over another.
    """
    if RUN_DIR_VARIABLE in os.environ:  # a process of a run that has its folder
        return Path(os.environ[RUN_DIR_VARIABLE])
    if resumed is not None:
        run = resumed
    elif config.run_dir or config.name:
        run = Path(config.run_dir or Path("runs") / config.name).absolute()
        if is_main_process():
            evaluation = str(config.name).endswith("-eval") and not config.run_dir
            run = _first_free(run) if evaluation else _exactly(run)
    else:
        run = (Path("runs") / config.recipe).absolute()
        if is_main_process():
            run = _first_free(run)
    os.environ[RUN_DIR_VARIABLE] = str(run)
    return run


def _exactly(run: Path) -> Path:
    try:
        run.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(
            f"the run folder {run} exists already; choose another name= or run_dir=, or remove it"
        ) from None
    return run


def _first_free(run: Path) -> Path:
    number = 1
    while True:
        candidate = run if number == 1 else run.with_name(f"{run.name}-{number}")
        try:  # making it is the test, so that two runs started together never share one
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1


def _resumed_run(config: DictConfig) -> Path | None:
    """The run folder that a resumed checkpoint lies in, which the run then goes on in."""
    if config.ckpt_path is None:
        return None
    config.ckpt_path = str(Path(config.ckpt_path).absolute())
    read_checkpoint(config.ckpt_path)
    folder = Path(config.ckpt_path).parent
    inside = folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    return folder.parent if inside and not config.run_dir and not config.name else None


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
        with _failure_ends_wandb(trainer):
            trainer.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    except SystemExit:  # how Lightning leaves after Ctrl-C
        code = INTERRUPTED
        if sweep is None or sweep.evaluation is None:
            _close(trainer, code)
            return code
    seconds["evaluate"] = time.monotonic() - started
    if trainer.is_global_zero:
        with _failure_ends_wandb(trainer):
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
    verdict = next((c.verdict for c in trainer.callbacks if hasattr(c, "verdict")), None)  # type: ignore[attr-defined]
    if verdict is not None:
        results["verdict"] = {"profile": verdict.profile, "status": verdict.status, **verdict.counts}
    _summarise_in_wandb(trainer, results)
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
    return FAILED if strict and verdict is not None and verdict.status == FAIL else 0


def _summarise_in_wandb(trainer: pl.Trainer, results: dict[str, Any]) -> None:
    """What a W&B table of runs ranks by besides the accuracies, which `AttackSweep` logs."""
    also = {"parameters": results["parameters"], **{f"seconds/{k}": v for k, v in results["seconds"].items()}}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            try:
                logger.experiment.summary.update(also)
            except Exception as error:  # wandb raises many kinds, none worth losing results for
                say(f"W&B did not take the run's times: {type(error).__name__}: {error}")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clean_of(trainer: pl.Trainer, data: Any) -> Accuracy:
    n = len(data.test_indices)
    return Accuracy(round(float(trainer.callback_metrics["test/accuracy"]) * n), n)


def summarise(
    config: DictConfig,
    net: nn.Module,
    evaluation: Evaluation | None,
    clean: Accuracy,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """results.json: what a README table quotes, as plain values. Accuracies are shares in [0, 1]."""
    eps, norm = float(config.eps), str(config.norm)
    results: dict[str, Any] = {
        "recipe": config.recipe,
        "name": config.name,
        "data": config.data["_target_"].rsplit(".", 1)[-1],
        "n": clean.n,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in net.parameters()),
        "clean": _plain(clean),
    }
    if evaluation is not None:
        results["complete"] = evaluation.complete
        results["attacks"] = {}
        for attack, knowledge in evaluation.runs:
            results["attacks"][evaluation.label(attack, knowledge)] = _of_attack(evaluation, attack, knowledge, eps)
        known = any(knowledge == "adaptive" for _, knowledge in evaluation.runs)
        if known and (attacks := evaluation.rests_on(norm=norm, eps=eps)):
            worst = evaluation.worst_case(norm=norm, eps=eps)
            results["worst_case"] = {"norm": norm, "eps": eps, **_plain(worst), "rests_on": attacks}
    results["seconds"] = {k: round(v, 1) for k, v in seconds.items()}
    packages = ("robustlit", "torch", "pytorch-lightning", "torchvision", "timm", "torchmetrics", "wandb")
    results["versions"] = {"python": platform.python_version(), **{p: _version(p) for p in packages}}
    results["device"] = device_name(next((p.device for p in net.parameters()), torch.device("cpu")), config)
    return results


def _of_attack(evaluation: Evaluation, attack: str, knowledge: str, eps: float) -> dict[str, Any]:
    """One attack's entry: its accuracy at `eps` or its own largest budget; of a minimal attack the median distance."""
    norm, budgets = evaluation.norm_of(attack), evaluation.budgets(attack, knowledge)
    if not budgets:
        median = evaluation.median_distance(attack, distance=norm, knowledge=knowledge)
        stood = evaluation.least_distances(attack, distance=norm, knowledge=knowledge) == math.inf
        found = {"norm": norm, "eps": None, "median": round(median, 6) if math.isfinite(median) else None}
        passes = evaluation.passes(attack, knowledge=knowledge)
        return {**found, **_plain(Accuracy(int(stood.sum()), len(stood))), "passes": round(passes, 2)}
    at = eps if any(abs(eps - b) < 1e-9 for b in budgets) else budgets[-1]
    reached = evaluation.accuracy(attack=attack, norm=norm, eps=at, knowledge=knowledge)
    passes = evaluation.passes(attack, eps=at, knowledge=knowledge)
    return {"norm": norm, "eps": at, **_plain(reached), "passes": round(passes, 2)}


def _plain(accuracy: Accuracy) -> dict[str, Any]:
    return {"accuracy": float(accuracy), "interval": [round(bound, 6) for bound in accuracy.interval]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device, config: DictConfig) -> str:
    """What the run ran on, in words."""
    if torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda"):
        name = torch.cuda.get_device_name(device if device.type == "cuda" else None)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    count = config.trainer.devices
    return f"{count} x {name}" if isinstance(count, int) and count > 1 else name


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _write_config(run: Path, stored: dict[str, Any]) -> None:
    if is_main_process():
        OmegaConf.save(OmegaConf.create(stored), run / "config.yaml")


def _close(trainer: pl.Trainer, code: int) -> None:
    """Ends what outlives a Trainer: the W&B run and the process group."""
    _finish_wandb(trainer, code)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _finish_wandb(trainer: pl.Trainer, code: int) -> None:
    if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers) or not trainer.is_global_zero:
        return
    try:
        ends = [logger.finish for logger in trainer.loggers if hasattr(logger, "finish")]
        if not ends:  # a logger of the user's own
            import wandb

            wandb.finish(exit_code=code)
        for finish in ends:
            if trouble := finish(code):
                say(trouble)
    except Exception as error:  # the run is done; W&B's trouble is only said
        say(f"W&B did not close cleanly: {error}")


@contextmanager
def _failure_ends_wandb(trainer: pl.Trainer) -> Iterator[None]:
    """A run that fails ends its W&B run, or the next job of a multirun would log into it."""
    try:
        yield
    except Exception:
        _finish_wandb(trainer, 1)
        raise


__all__ = ["CheckpointError", "ConfigError", "evaluate", "train"]
