"""Create, share between processes and resume the run directory, and write the recipe into it."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

from robustlit.attacks.memory import is_out_of_memory
from robustlit.experiment.recipes import ConfigError
from robustlit.files import PART, write_file
from robustlit.results.files import read_yaml
from robustlit.tracking.console import is_main_process
from robustlit.training import CheckpointError

RUN_DIR_VARIABLE = "ROBUSTLIT_RUN_DIR"  # tells the processes that Lightning starts which directory the first one made
CONFIG, COMMAND = "config.yaml", "command.txt"
_COMPUTED = ("results.json", "checkpoints/*.ckpt", "**/*.pt", "evaluation/*")
PICTURE = "adversarial_images.png"  # of ten images: by itself no evaluation


def make_run_dir(path: Path, create: Callable[[Path], Path]) -> Path:
    """Create a run directory, or join the one that the main process created.

    Args:
        path: The directory wanted.
        create: `exactly`, `numbered`, or `Path` for one that exists; creates it on the main process.
    """
    if RUN_DIR_VARIABLE not in os.environ:
        path = path.absolute()
        os.environ[RUN_DIR_VARIABLE] = str(create(path) if is_main_process() else path)
    return Path(os.environ[RUN_DIR_VARIABLE])


def exactly(run: Path) -> Path:
    """Create this very directory; raise a FileExistsError if it exists: a run never overwrites another."""
    try:
        run.mkdir(parents=True)
    except FileExistsError:
        message = f"the run folder {run} exists already; choose another name= or run_dir=, or remove it"
        raise FileExistsError(message) from None
    return run


def numbered(run: Path) -> Path:
    """Create the directory, or the first of run-2, run-3, ... that does not exist."""
    number, candidate = 1, run
    while True:
        try:  # creating it is the test, so that two runs started together never share one
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = run.with_name(f"{run.name}-{number}")


def labelled(recipe: str, label: str) -> Path:
    """Return the usual directory of a run: runs/RECIPE, with a label runs/RECIPE-LABEL."""
    return Path("runs") / (f"{recipe}-{label}" if label else recipe)


def with_label(recipe: dict[str, Any], label: str) -> dict[str, Any]:
    """Append a job's label to `name` and `run_dir` where these are set for all jobs of a multirun."""
    shared = {key: recipe[key] for key in ("name", "run_dir") if recipe[key] and "${" not in str(recipe[key])}
    return recipe | {key: f"{value}-{label}" for key, value in shared.items() if label}


def training_dir(recipe: dict[str, Any], resumed: Path | None, usual: Path) -> Path:
    """Create `run_dir`, else runs/NAME, else the usual one numbered to be new; a resumed run keeps its own."""
    if recipe["run_dir"] or recipe["name"]:
        return make_run_dir(Path(recipe["run_dir"] or f"runs/{recipe['name']}"), exactly)
    if resumed is not None:
        return make_run_dir(resumed, Path)
    return make_run_dir(usual, numbered)


def numbers_of(run: Path) -> list[Path]:
    """Return those of run, run-2, run-3, ... that exist, in this order."""
    found = {
        int(folder.name[len(run.name) + 1 :] or 1): folder
        for folder in run.parent.glob(f"{glob.escape(run.name)}*")
        if re.fullmatch(r"(-\d+)?", folder.name[len(run.name) :])
    }
    return [found[number] for number in sorted(found)]


def labels_of(run: Path) -> list[Path]:
    """Return the folders run-KEY_VALUE (see `labelled`) that exist, in the order in which they were started."""
    found = [folder for folder in run.parent.glob(f"{glob.escape(run.name)}-*_*") if (folder / CONFIG).is_file()]
    return sorted(found, key=lambda folder: (folder / CONFIG).stat().st_mtime_ns)


def check_trained(folder: Path) -> None:
    """Raise a CheckpointError for the folder of an evaluation: it holds no checkpoint, but names what it attacked."""
    if not (folder / "evaluation").is_dir() or (folder / "checkpoints").is_dir():
        return
    with suppress(OSError, ValueError):
        config = read_yaml(folder / CONFIG)
        origin = config.get("ckpt_path") if isinstance(config, dict) else None
        if isinstance(origin, str) and origin.isprintable():
            # Else it is a net of the user's own, or a path from another folder.
            there = f"{origin}: give that" if Path(origin).exists() else f"{origin}: see {folder / COMMAND}"
            raise CheckpointError(f"{folder} holds no checkpoint, it is an evaluation of {there}")


def write_recipe(run: Path, recipe: dict[str, Any], command: str | None) -> None:
    """Write `config.yaml`, from which the run can be read, repeated and attacked again, and `command.txt`."""
    if is_main_process():
        write_file(run / CONFIG, OmegaConf.to_yaml(OmegaConf.create(recipe)))
        write_command(run, command)


def write_command(run: Path, command: str | None) -> None:
    """Write `command.txt`."""
    if command is not None and is_main_process():
        write_file(run / COMMAND, f"{command}\n")


@contextmanager
def removed_on_failure(run: Path | None) -> Iterator[None]:
    """Remove a new run directory when the run fails before anything was computed; None keeps it."""
    try:
        yield
    except BaseException:
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            with suppress(Exception):  # the failure itself is what must be reported
                wandb.finish(exit_code=1)  # or the next job of a multirun would log into it
        remove_empty(run)
        raise


@contextmanager
def removed_before_a_step(run: Path | None, trainer: pl.Trainer, step: int) -> Iterator[None]:
    """Remove a new run directory when the training fails before its first step, the one after `step`."""
    try:
        yield
    except Exception as error:
        if trainer.global_step > step:
            raise
        remove_empty(run)
        with in_one_line():
            raise error


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn what a wrong value of a recipe raises, wherever it is first used, into a ConfigError of one line."""
    try:
        yield
    except Exception as error:
        worded = type(error).__module__.partition(".")[0] in ("robustlit", "hydra", "omegaconf")
        if worded or isinstance(error, (ValueError, OSError)) or is_out_of_memory(error):
            raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f"the run cannot start: {type(error).__name__}: {first}; look for a value of the wrong type "
            "(HYDRA_FULL_ERROR=1 shows where it is used)"
        ) from error


def remove_empty(run: Path | None) -> None:
    """Remove a run directory in which nothing was computed: no checkpoint or tensors, no results and no evaluation."""
    if run is not None and is_main_process():
        computed = [file for kind in _COMPUTED for file in run.glob(kind) if not file.name.endswith(PART)]
        if all(file.name == PICTURE for file in computed):
            shutil.rmtree(run, ignore_errors=True)
