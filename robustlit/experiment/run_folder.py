"""The folder of a run: made for it alone, shared by its processes, gone on in when it is resumed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustlit.tracking.console import is_main_process
from robustlit.training import CheckpointError, read_checkpoint

RUN_DIR_VARIABLE = "ROBUSTLIT_RUN_DIR"  # how the processes that Lightning starts learn the folder of the first
PICTURE = "adversarial_images.png"  # drawn before the sweep, of ten images: by itself no evaluation


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


def resumed_run(config: DictConfig) -> Path | None:
    """The run folder that a resumed checkpoint lies in, which the run then goes on in."""
    if config.ckpt_path is None:
        return None
    config.ckpt_path = str(_to_resume_from(config.ckpt_path))
    read_checkpoint(config.ckpt_path)
    folder = Path(config.ckpt_path).parent
    inside = folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    return folder.parent if inside and not config.run_dir and not config.name else None


def _to_resume_from(path: str) -> Path:
    """The checkpoint that `ckpt_path` means, absolute: of a run folder its last one.

    Raises:
        CheckpointError: a folder without one.
    """
    place = Path(path).absolute()
    if not place.is_dir():
        return place
    folder = place if place.name == "checkpoints" else place / "checkpoints"
    if not (folder / "last.ckpt").is_file():
        raise CheckpointError(
            f"{path} is a folder without checkpoints/last.ckpt, so there is nothing to resume; give a .ckpt file or a "
            "run folder (runs/NAME) that was trained"
        )
    return folder / "last.ckpt"


def write_config(run: Path, stored: dict[str, Any]) -> None:
    """Writes `config.yaml`, from which the run can be read, repeated and attacked again."""
    if is_main_process():
        OmegaConf.save(OmegaConf.create(stored), run / "config.yaml")


@contextmanager
def removed_on_failure(run: Path | None) -> Iterator[None]:
    """Takes a new run folder away again when the run fails before anything was computed."""
    try:
        yield
    except BaseException:
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            with suppress(Exception):  # the failure itself is what is to be told
                wandb.finish(exit_code=1)  # or the next job of a multirun would log into it
        if run is not None:
            remove_empty(run)
        raise


def remove_empty(run: Path) -> None:
    """Removes a run folder in which nothing was computed: no checkpoint, no results and no evaluation."""
    if is_main_process() and not any(_computed(run)):
        shutil.rmtree(run, ignore_errors=True)


def _computed(run: Path) -> Iterator[Path]:
    yield from run.glob("results.json")
    yield from run.glob("checkpoints/*.ckpt")
    for file in run.glob("evaluation/*"):
        if file.name != PICTURE:
            yield file
