"""The plan of a run: the composed recipe, checked, completed and read once. Nothing writes to it afterwards."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robustlit.data import ImageFolder
from robustlit.experiment import recipes
from robustlit.experiment.checkpoints import BEST, LAST
from robustlit.experiment.gate import check_gate, warn_of_another_norm
from robustlit.experiment.lock import FolderLock
from robustlit.experiment.recipe_file import check_similarity, drop_what_the_net_does_not_take
from robustlit.experiment.recipes import ConfigError, read_only
from robustlit.experiment.resume import (
    AUTO,
    Changes,
    Resumed,
    find_started,
    is_finished,
    read_resumed,
    read_started,
)  # fmt: skip
from robustlit.experiment.resume_evaluation import find_evaluation, stored_recipe
from robustlit.experiment.run_folder import (
    RUN_DIR_VARIABLE,
    exactly,
    labelled,
    make_run_dir,
    numbered,
    remove_empty,
    training_dir,
    with_label,
    write_command,
)  # fmt: skip
from robustlit.experiment.trainer_settings import trainer_settings
from robustlit.files import remove_parts, write_file
from robustlit.threat import check_eps, check_norm
from robustlit.tracking.console import is_main_process, say

Recipe = dict[str, Any]
_SHAPE = ("num_classes", "in_chans", "image_size")


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    name: str  # of the run
    run_dir: Path  # which exists
    seed: int
    eps: float  # the budget that is trained for and quoted, in pixel units
    norm: str
    trainer: Mapping[str, Any]  # arguments of the Trainer, its precision decided
    resumed: Resumed | None  # the checkpoint to resume from
    command: str | None  # the command line, as typed
    config: DictConfig  # the whole recipe, read-only; `make` builds its sections
    new_run_dir: Path | None = None  # the run directory where this run created it
    lock: FolderLock | None = None  # on the run directory, of the main process of a training


def plan_training(config: DictConfig, command: str | None = None, label: str = "") -> Plan | Path:
    """Return the plan of a training run, in its directory, which is created or, with resume=auto, gone on in.

    Args:
        config: The composed recipe, which is set read-only.
        command: The command line, to be stored with the run.
        label: See `train`.

    Returns:
        The plan; the directory of the run where resume=auto finds it finished.

    Raises:
        ConfigError, ValueError, DataError, CheckpointError, FileExistsError, FolderInUseError: The run is not possible.
    """
    recipe = with_label(normalised(config), label)
    check_similarity(recipe)
    auto = _takes_auto(recipe)
    place = find_started(recipe, command) if auto else None
    if place is not None:
        return _plan_of_started(fill_from_data(recipe), place, command)
    resumed = None
    if recipe["ckpt_path"] is not None:
        if fits_defense(recipe):
            raise ConfigError(
                "there is nothing to resume: this recipe fits a defense in one go; leave ckpt_path out, and give a "
                "trained classifier as base=RUN (runs/NAME/checkpoints/base.ckpt, where an earlier run trained one)"
            )
        resumed = read_resumed(recipe["ckpt_path"])
        recipe["ckpt_path"] = resumed.checkpoint
    recipe = _with_run_id(fill_from_data(recipe), resumed.recipe if resumed else {})
    usual = labelled(recipe["recipe"], label)
    run_dir = training_dir(recipe, resumed.run_dir if resumed else None, usual)
    if auto and run_dir.name != usual.name and not (recipe["run_dir"] or recipe["name"]):
        say(f"resume=auto: there is no run of this command yet; it starts in {run_dir}")
    new = None if resumed and resumed.run_dir == run_dir else run_dir
    return _claimed(recipe, resumed, command, run_dir, new)


def _takes_auto(recipe: Recipe) -> bool:
    """Return whether resume=auto is asked for, and reset it: it is no setting of the run."""
    asked, recipe["resume"] = recipe.get("resume"), None
    if asked not in (None, AUTO):
        raise ConfigError(f"resume must be {AUTO} or null, got {asked}; ckpt_path= takes a checkpoint")
    return asked == AUTO


def _plan_of_started(recipe: Recipe, run_dir: Path, command: str | None) -> Plan | Path:
    """Return the plan of a run that goes on where it stopped; its directory where it is finished."""
    if is_finished(run_dir):
        changed = Changes.of(read_started(run_dir), recipe, command)
        if not changed.named:
            say(f"resume=auto: {run_dir} is finished, there is nothing to do")
            return run_dir
        changed.check_only_longer()
    make_run_dir(run_dir, Path)
    lock = _locked(run_dir)
    try:
        started = read_started(run_dir)
        resumed = started.resumed
        recipe = _with_run_id(recipe, started.recipe)
        if resumed is None:
            say(f"resume=auto: {run_dir} has no checkpoint to resume from: the run starts anew in it")
        else:
            recipe = Changes.of(started, recipe, command).applied(recipe)
            recipe["ckpt_path"] = started.recipe.get("ckpt_path")
            if lock is not None and (newest := Path(resumed.checkpoint)).name == BEST:
                write_file(newest.with_name(LAST), newest.read_bytes())  # it was to follow
            say(f"resume=auto: going on in {run_dir} after step {resumed.step} ({Path(resumed.checkpoint).name})")
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return _claimed(recipe, resumed, command, run_dir, None, lock)


def _claimed(
    recipe: Recipe, resumed: Resumed | None, command: str | None, run_dir: Path, new: Path | None,
    lock: FolderLock | None = None,
) -> Plan:  # fmt: skip
    """Return the plan of a training in a directory that exists, which is locked; a failure gives it back."""
    learned = (resumed.recipe.get("objective") or {}).get("similarity") if resumed else None
    if isinstance(learned, list):  # the matrix that the objective learned at first
        recipe = {**recipe, "objective": {**recipe["objective"], "similarity": learned}}
    recipe |= {"run_dir": str(run_dir), "name": recipe["name"] or run_dir.name}
    if recipe.get("generator") and (recipe.get("module") or recipe.get("defense")):
        # Evaluated again, in another directory, it must be found here.
        recipe["generator"] = read_only(recipe).generator
    try:
        lock = lock or _locked(run_dir)
        if resumed is None:
            write_command(run_dir, command)  # now, so that resume=auto knows the run
        return replace(_plan(recipe, resumed, command), new_run_dir=new, lock=lock)
    except BaseException:
        if lock is not None:
            lock.release()
        remove_empty(new)
        raise


def _locked(run_dir: Path) -> FolderLock | None:
    """Lock a run directory, on the main process, and remove what a killed one was writing."""
    if not is_main_process():
        return None
    lock = FolderLock(run_dir)
    remove_parts(run_dir)
    return lock


def plan_evaluation(config: DictConfig, origin: str, command: str | None = None) -> Plan | Path:
    """Return the plan of an evaluation, and create its directory, `runs/NAME-eval` unless `run_dir` is set.

    With resume=auto it goes on with the newest unfinished evaluation of the same settings there, if there is one.

    Args:
        config: The recipe of the training, as changed by overrides; it is set read-only.
        origin: Where the net comes from, stored as `ckpt_path`.
        command: See `plan_training`.

    Returns:
        The plan; the directory of a finished evaluation where resume=auto finds no other.
    """
    recipe = normalised(config)
    auto = _takes_auto(recipe)
    place = Path(recipe["run_dir"] or Path("runs") / f"{recipe['name']}-eval")
    found = find_evaluation(recipe, origin, place) if auto and RUN_DIR_VARIABLE not in os.environ else None
    if found is not None and is_finished(found):
        return found
    if "job_type" in recipe["logger"]:
        group = read_only(recipe).logger.get("group") or recipe["name"]
        before = (stored_recipe(found).get("logger") or {}).get("run_id") if found else None
        recipe["logger"] |= {"job_type": "eval", "group": group, "run_id": before or uuid.uuid4().hex[:8]}
    if found is not None:
        run_dir = make_run_dir(found, Path)
        say(f"resume=auto: going on in {found}")
    else:
        run_dir = make_run_dir(place, exactly if recipe["run_dir"] else numbered)
        if auto:
            say(f"resume=auto: there is no unfinished evaluation of these settings; it starts in {run_dir}")
    new = run_dir if found is None else None
    recipe |= {"run_dir": str(run_dir), "name": run_dir.name, "ckpt_path": origin}
    try:
        return replace(_plan(recipe, None, command), new_run_dir=new, lock=_locked(run_dir))
    except BaseException:
        remove_empty(new)
        raise


def normalised(config: DictConfig) -> Recipe:
    """Return a composed recipe as plain containers, checked, its fractions read; the config becomes read-only."""
    OmegaConf.set_readonly(config, True)
    recipe: Recipe = recipes.read_fractions({**recipes.stored(config), "recipe": config.recipe})
    check_norm(recipes.read_only(recipe).norm)  # before a budget in it is asked for
    recipe["eps"] = recipes.chosen_eps(recipe)
    recipes.drop_left_out(recipe)
    recipes.make_lists(recipe)
    drop_what_the_net_does_not_take(recipe)
    checked = read_only(recipe)
    recipes.check_keys(checked)
    if isinstance(checked.seed, bool) or not isinstance(checked.seed, int) or not 0 <= checked.seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to {2**32 - 1}, got {checked.seed!r}")
    check_eps(checked.eps, checked.norm)  # before the interpolations that multiply it
    recipes.check_complete(checked)
    recipes.check_name(checked.name)
    recipes.check_switches(checked)
    recipes.check_verdict(checked)
    check_gate(checked)
    warn_of_another_norm(checked)
    return recipe


def make(config: DictConfig, section: str, *arguments: Any, **more: Any) -> Any:
    """Build what a section of a recipe names, such as "callbacks.progress", with further arguments; None if null."""
    node = OmegaConf.select(config, section)
    if recipes.is_left_out(node):
        return None
    own = OmegaConf.create({})  # a copy of the section, as Hydra resolves interpolations in place
    OmegaConf.update(own, section, OmegaConf.to_container(node, resolve=True), force_add=True)
    return instantiate(OmegaConf.select(own, section), *arguments, _convert_="all", **more)


def fits_defense(recipe: Mapping[str, Any] | DictConfig) -> bool:
    """Return whether the recipe's defense is fitted around a trained classifier, without a training loop."""
    return bool(recipe.get("defense")) and not recipe.get("module")


def has_own_callbacks(config: DictConfig) -> bool:
    """Return whether a recipe has callbacks that are not robustlit's."""
    targets = [OmegaConf.select(config, f"callbacks.{name}._target_") for name in config.callbacks]
    return any(target is not None and not str(target).startswith("robustlit.") for target in targets)


def fill_from_data(recipe: Recipe) -> Recipe:
    """Return a recipe with the shapes of its data where its nets leave them null, and the names of class folders."""
    data = make(read_only(recipe), "data")
    classes = data.classes if isinstance(data, ImageFolder) else None
    if references := [name for name in classes or () if "${" in name]:
        raise ConfigError(f"the class folder {references[0]!r} would be read as a reference in the recipe; rename it")
    nets = {part: net for part in ("model", "defense", "module") if isinstance(net := recipe.get(part), dict)}
    filled = {part: _filled(net, data) for part, net in nets.items()}
    return {**recipe, **filled, "class_names": classes}


def _filled(node: dict[str, Any], data: Any) -> dict[str, Any]:
    filled = {key: _filled(value, data) if isinstance(value, dict) else value for key, value in node.items()}
    return filled | {key: int(getattr(data, key)) for key in _SHAPE if key in node and node[key] is None}


def _with_run_id(recipe: Recipe, before: Recipe) -> Recipe:
    """Return a recipe with its W&B run: a sweep's, else that of the recipe that it resumes, else a new one."""
    logger = recipe["logger"]
    if "run_id" not in logger:
        return recipe
    run_id = logger["run_id"] or uuid.uuid4().hex[:8]
    run_id = (before.get("logger") or {}).get("run_id") or run_id
    if os.environ.get("WANDB_SWEEP_ID"):  # `wandb agent` chose it, and W&B obeys the agent
        run_id = os.environ.get("WANDB_RUN_ID") or run_id
    return {**recipe, "logger": {**logger, "run_id": str(run_id)}}


def _plan(recipe: Recipe, resumed: Resumed | None, command: str | None) -> Plan:
    config = read_only(recipe)
    return Plan(
        name=config.name, run_dir=Path(config.run_dir), seed=config.seed, eps=float(config.eps), norm=str(config.norm),
        trainer=trainer_settings(config.trainer), resumed=resumed, command=command, config=config,
    )  # fmt: skip
