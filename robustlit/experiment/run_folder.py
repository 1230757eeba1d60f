"""Create, share between processes and resume the run directory, and write the recipe into it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

from robustlit.experiment.recipes import ConfigError
from robustlit.tracking.console import is_main_process
from robustlit.training import CheckpointError, read_checkpoint

RUN_DIR_VARIABLE = "ROBUSTLIT_RUN_DIR"  # tells the processes that Lightning starts which directory the first one made
PICTURE = "adversarial_images.png"  # drawn before the sweep, of ten images: by itself no evaluation


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run resumes from."""

    checkpoint: str  # the file, as an absolute path
    recipe: dict[str, Any]  # stored in it; empty where there is none
    run_dir: Path | None  # the run directory it lies in, None where it lies elsewhere
    schedules: list[int | None]  # lengths of its learning-rate schedules in steps, where they have one


def read_resumed(path: str) -> Resumed:
    """Read the checkpoint that `ckpt_path` names: a file, or a run directory (then its last checkpoint).

    Raises:
        CheckpointError: A directory without one, or a file that is no checkpoint of robustlit.
    """
    place = Path(path).absolute()
    if place.is_dir():
        place = (place if place.name == "checkpoints" else place / "checkpoints") / "last.ckpt"
        if not place.is_file():
            raise CheckpointError(
                f"{path} is a folder without checkpoints/last.ckpt, so there is nothing to resume; give a .ckpt file "
                "or a run folder (runs/NAME) that was trained"
            )
    read = read_checkpoint(place)
    inside = place.parent.name == "checkpoints" and (place.parents[1] / "config.yaml").is_file()
    schedules = [state.get("total_steps") for state in read.get("lr_schedulers", ())]
    return Resumed(str(place), read["robustlit"]["config"] or {}, place.parents[1] if inside else None, schedules)


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


def write_recipe(run: Path, recipe: dict[str, Any], command: str | None) -> None:
    """Write `config.yaml`, from which the run can be read, repeated and attacked again, and `command.txt`."""
    if is_main_process():
        OmegaConf.save(OmegaConf.create(recipe), run / "config.yaml")
        if command is not None:
            (run / "command.txt").write_text(f"{command}\n")


class StartResumed(pl.Callback):
    """Write the recipe of a resumed run; raise a ConfigError if it outlasts the checkpoint's schedule.

    A schedule is restored with the length it was made for (`OneCycleLR.total_steps`), whatever the run's length. A
    refused run leaves the `config.yaml` of its directory unchanged.
    """

    def __init__(self, resumed: Resumed, run_dir: Path, recipe: dict[str, Any], command: str | None) -> None:
        self.resumed, self.run_dir, self.recipe, self.command = resumed, run_dir, recipe, command

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the lengths of both schedules, before the first step."""
        for length, new in zip(self.resumed.schedules, trainer.lr_scheduler_configs, strict=False):
            steps = getattr(new.scheduler, "total_steps", None)
            if length is not None and steps is not None and steps > length:
                epochs = self.resumed.recipe.get("trainer", {}).get("max_epochs")
                raise ConfigError(
                    f"the checkpoint's schedule ends after {length} steps, and this run would take {steps}: resume "
                    f"with the same data and trainer settings (its trainer.max_epochs was {epochs}), or start anew, "
                    "without ckpt_path"
                )
        write_recipe(self.run_dir, self.recipe, self.command)


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


def remove_empty(run: Path | None) -> None:
    """Remove a run directory in which nothing was computed: no checkpoint, no results and no evaluation."""
    if run is not None and is_main_process():
        computed = [file for kind in ("results.json", "checkpoints/*.ckpt", "evaluation/*") for file in run.glob(kind)]
        if all(file.name == PICTURE for file in computed):
            shutil.rmtree(run, ignore_errors=True)
