"""What a training resumes from: the checkpoint that `ckpt_path=` names, or the run that `resume=auto` finds."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlit.experiment.checkpoints import BEST, LAST, newest_readable
from robustlit.experiment.lock import FILE as LOCK
from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.run_folder import (
    COMMAND,
    CONFIG,
    PICTURE,
    RUN_DIR_VARIABLE,
    exactly,
    labels_of,
    numbers_of,
)
from robustlit.files import PART
from robustlit.results.files import read_yaml
from robustlit.tracking.console import say
from robustlit.training import CheckpointError, read_checkpoint
from robustlit.training.checkpoint import check_resumable

Recipe = dict[str, Any]
AUTO, RESULTS = "auto", "results.json"
# What a resumed run may change: what comes after training, where and how fast it runs, and how long.
_FREE = (
    "sweep", "save_adversarials", "verdict", "min_robust", "logger", "callbacks", "checkpoint_minutes",
    "data.test_size", "data.eval_batch_size", "data.root", "data.num_workers", "trainer.max_epochs",
    "trainer.max_steps", "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy",
    "trainer.limit_test_batches", "trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.benchmark",
    "trainer.deterministic", "trainer.fast_dev_run",
)  # fmt: skip
_LENGTH = ("trainer.max_epochs", "trainer.max_steps")
_NO_SETTINGS = ("name", "run_dir", "ckpt_path", "resume", "logger.run_id", "generator")
_SHOWN = 6  # changed values in one line


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run resumes from."""

    checkpoint: str  # the file, as an absolute path
    recipe: Recipe  # stored in it; empty where there is none
    run_dir: Path | None  # the run directory it lies in, None where it lies elsewhere
    step: int
    schedules: list[int | None]  # lengths of its learning-rate schedules in steps, where they have one


@dataclass(frozen=True)
class Started:
    """A run that was started before, as `resume=auto` finds it."""

    run_dir: Path
    recipe: Recipe  # its config.yaml; empty where it had none yet
    resumed: Resumed | None  # None before its first checkpoint


def read_resumed(path: str) -> Resumed:
    """Read the checkpoint that `ckpt_path` names: a file, or a run directory (then the newest that can be read).

    Raises:
        CheckpointError: A directory without one, or a file that is no checkpoint of robustlit.
    """
    place = Path(path).absolute()
    if place.is_dir():
        folder = place if place.name == "checkpoints" else place / "checkpoints"
        if (found := newest_readable(folder)) is None:
            raise CheckpointError(
                f"{path} is a folder without checkpoints/{LAST}, so there is nothing to resume; give a .ckpt file "
                "or a run folder (runs/NAME) that was trained"
            )
        return _resumed(*found)
    try:
        return _resumed(place, read_checkpoint(place))
    except CheckpointError:
        beside = newest_readable(place.parent) if place.name == LAST and (place.parent / BEST).is_file() else None
        if beside is None:
            raise
        return _resumed(*beside)


def _resumed(place: Path, read: dict[str, Any]) -> Resumed:
    check_resumable(read, place)
    inside = place.parent.name == "checkpoints" and (place.parents[1] / CONFIG).is_file()
    schedules = [state.get("total_steps") for state in read.get("lr_schedulers", ())]
    run_dir, step = place.parents[1] if inside else None, int(read.get("global_step", 0))
    return Resumed(str(place), read["robustlit"]["config"] or {}, run_dir, step, schedules)


def find_started(recipe: Recipe, command: str | None) -> Path | None:
    """Return the folder of the run that `resume=auto` goes on with, None where a new one is to be made.

    It is `run_dir` or runs/NAME; without either the newest of runs/RECIPE, runs/RECIPE-2, ..., and runs/RECIPE-LABEL of
    a multirun, with this command line.

    Raises:
        FileExistsError: The folder that is asked for is no run that was being trained.
    """
    if (joined := os.environ.get(RUN_DIR_VARIABLE)) is not None:
        return Path(joined)
    if recipe["run_dir"] or recipe["name"]:
        place = Path(recipe["run_dir"] or f"runs/{recipe['name']}").absolute()
        return place if place.exists() and _check_trained(place) else None
    usual = Path("runs") / recipe["recipe"]
    folders = [f for f in (*numbers_of(usual), *labels_of(usual)) if _is_of(f, command)]
    return folders[-1].absolute() if folders and _check_trained(folders[-1]) else None


def read_started(run: Path) -> Started:
    """Return what a run left."""
    try:
        recipe: Any = read_yaml(run / CONFIG)
    except FileNotFoundError:
        recipe = None
    found = newest_readable(run / "checkpoints")
    # A defense that was fitted has weights alone.
    resumed = _resumed(*found) if found is not None and "loops" in found[1] else None
    if not isinstance(recipe, dict):
        recipe = {} if resumed is None else resumed.recipe
    return Started(run, recipe, resumed)


def is_finished(run: Path) -> bool:
    """Return whether a run has ended: results.json, which is written last, is complete."""
    try:
        results = json.loads((run / RESULTS).read_text())
    except (OSError, ValueError):
        return False
    there = "attacks" not in results or (run / "evaluation" / "examples.parquet").is_file()
    return bool(there and results.get("complete", True))


@dataclass(frozen=True)
class Changes:
    """The settings in which a command differs from the run that it goes on with: key -> (the run's, the command's)."""

    run_dir: Path
    named: dict[str, tuple[Any, Any]]  # by the command line, which are taken over
    kept: dict[str, tuple[Any, Any]]  # not named: a recipe file was edited since; the run's values stay

    @classmethod
    def of(cls, started: Started, recipe: Recipe, command: str | None) -> Changes:
        """Compare; raise a ConfigError where the command changes what was trained with."""
        changes = dict(_changes(started.recipe, recipe))
        named = {key: pair for key, pair in changes.items() if command is None or _lies_in(key, _keys(command))}
        if fixed := {key: pair for key, pair in named.items() if not _lies_in(key, _FREE)}:
            raise ConfigError(
                f"{started.run_dir} was started with {_in_words(fixed, 0)}, this command has {_in_words(fixed, 1)}: "
                "what a run was trained with stays; leave that out, or choose another name="
            )
        kept = {key: pair for key, pair in changes.items() if key not in named and pair[0] is not None}
        return cls(started.run_dir, named, kept)

    def check_only_longer(self) -> None:
        """Raise a ConfigError where a finished run would be changed in more than its length."""
        others = {key: pair for key, pair in self.named.items() if key not in _LENGTH}
        if others:
            raise ConfigError(
                f"{self.run_dir} is finished, with {_in_words(others, 0)}, this command has {_in_words(others, 1)}: "
                f"`robustlit evaluate {self.run_dir} KEY=VALUE` attacks it anew in a folder of its own"
            )

    def applied(self, recipe: Recipe) -> Recipe:
        """Return the recipe that the run goes on with, and print what changes."""
        if self.kept:
            say(f"resume=auto keeps the run's {_in_words(self.kept, 0)} (the recipe now has {_in_words(self.kept, 1)})")
        if self.named:
            say(f"resume=auto goes on with {_in_words(self.named, 1)} (before: {_in_words(self.named, 0)})")
        for key, (before, _) in self.kept.items():
            recipe = _with(recipe, key.split("."), before)
        return recipe


def _changes(before: Recipe, now: Recipe) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the settings that differ, as (key, (before, now)); None stands for a key that is not there."""
    old, new = (dict(_leaves(recipe)) for recipe in (before, now))
    skipped = [*_NO_SETTINGS]
    if now.get("defense") or now.get("module"):
        skipped.append("model")  # the stored one is that of the trained net
    if isinstance(old.get("objective.similarity"), list):
        skipped.append("objective.similarity")  # learned from the data
    for key in {**old, **new}:
        if old.get(key) != new.get(key) and not _lies_in(key, skipped):
            yield key, (old.get(key), new.get(key))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with(node: Recipe, keys: list[str], value: Any) -> Recipe:
    first, *rest = keys
    below = node.get(first)
    return {**node, first: _with(below if isinstance(below, dict) else {}, rest, value) if rest else value}


def _in_words(pairs: dict[str, tuple[Any, Any]], side: int) -> str:
    shown = [f"{key}={pair[side]}" for key, pair in pairs.items()]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"{', '.join(shown[:_SHOWN])}{more}"


def _lies_in(key: str, places: Any) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _keys(command: str) -> set[str]:
    return {override.lstrip("+~").partition("=")[0] for override in _overrides(command)}


def _overrides(command: str) -> set[str]:
    words = {word for word in shlex.split(command) if "=" in word or word.startswith("~")}
    return {word for word in words if not word.startswith("-")} - {f"resume={AUTO}", f"+resume={AUTO}"}


def _is_of(run: Path, command: str | None) -> bool:
    """Return whether a run was started by a command line, `resume=auto` or not."""
    try:
        stored = (run / COMMAND).read_text(encoding="utf-8", errors="surrogateescape")
        return command is not None and _overrides(stored) == _overrides(command)
    except (OSError, ValueError):
        return False


def _untouched(run: Path) -> bool:
    """Return whether a process made a folder and wrote nothing into it."""
    return run.is_dir() and all(file.name == LOCK or file.name.endswith(PART) for file in run.iterdir())


def _check_trained(run: Path) -> bool:
    """Return True, or raise a FileExistsError for a folder that no training made or that holds other results."""
    computed = [*run.glob(RESULTS), *(file for file in run.glob("evaluation/*") if file.name != PICTURE)]
    trained = any((run / "checkpoints" / name).is_file() for name in (LAST, BEST))
    ours = any((run / name).is_file() for name in (CONFIG, COMMAND)) or (run.is_dir() and _untouched(run))
    if not ours or (computed and not trained):
        exactly(run)  # raises
    return True
