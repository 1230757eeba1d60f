"""Attack a trained net again: a checkpoint by its stored recipe, or any net that a function returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from robustlit.experiment.build import module_to_evaluate
from robustlit.experiment.composition import composed_for_net, overridden
from robustlit.experiment.migration import migrated
from robustlit.experiment.outcome import FAILED, measure
from robustlit.experiment.own_net import own_net
from robustlit.experiment.plan import Plan, Recipe, make, plan_evaluation
from robustlit.experiment.preflight import check_takes
from robustlit.experiment.recipes import ConfigError, stored
from robustlit.experiment.run_folder import in_one_line, remove_empty, removed_on_failure, write_recipe
from robustlit.experiment.stored_recipe import callers_own, resolved_plan
from robustlit.experiment.trainer import make_run, quiet_lightning
from robustlit.processes import exit_code, leave_on_signals, watch_parent
from robustlit.results import FAIL, Verdict
from robustlit.tracking.console import say
from robustlit.training import read_checkpoint
from robustlit.training.checkpoint import classifier_of
from robustlit.training.stored import one_line


@leave_on_signals()
def evaluate_checkpoint(
    checkpoint: str, overrides: Sequence[str], *, trusted: Sequence[str] = (), strict: bool = False,
    command: str | None = None,
) -> int:  # fmt: skip
    """Attack a checkpoint again by its stored recipe, as changed by overrides; return the exit code.

    Args:
        checkpoint: The file, or a run directory (then its best checkpoint).
        overrides: As on the command line; `group=NAME` replaces that group by its file.
        trusted: Packages of your own that the recipe may name classes from.
        strict: Return `FAILED` where the verdict fails, and 1 where there is none.
        command: The command line, as typed, stored in the run directory.
    """
    quiet_lightning()
    watch_parent()
    read = read_checkpoint(checkpoint)
    recipe = read["robustlit"]["config"]
    if recipe is None:
        raise ConfigError(
            f"{checkpoint} holds no recipe (it was trained from Python); evaluate it from Python: "
            "robustlit.evaluate(load_classifier(path, net=...)[0], data, attacks)"
        )
    config = overridden(callers_own(migrated(recipe), checkpoint), overrides)
    try:
        with in_one_line():
            plan = plan_evaluation(config, checkpoint, command)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the recipe in {checkpoint} cannot be resolved: {one_line(error)}") from error
    if isinstance(plan, Path):
        return _finished(plan, strict)
    with in_one_line(), removed_on_failure(plan.new_run_dir):
        checked = resolved_plan(plan, trusted)
        net, _ = classifier_of(read, checkpoint, model=OmegaConf.to_container(checked.config.model), trusted=trusted)
    return _evaluate(checked, stored(plan.config), net, strict)


@leave_on_signals()
def evaluate_own_net(
    place: str, overrides: Sequence[str], *, weights: str | None = None, strict: bool = False,
    command: str | None = None,
) -> int:  # fmt: skip
    """Attack the net that a function returns, by default its worst case at eps; return the exit code.

    Args:
        place: `module:function`.
        overrides: Of the recipe `standard` with data=mnist and sweep=worst_case, which they may replace.
        weights: A file with the net's state dict.
        strict, command: See `evaluate_checkpoint`.
    """
    quiet_lightning()
    watch_parent()
    config, net = composed_for_net(place, overrides), own_net(place, weights)
    plan = plan_evaluation(config, place, command)
    return _finished(plan, strict) if isinstance(plan, Path) else _evaluate(plan, stored(plan.config), net, strict)


def _finished(run: Path, strict: bool) -> int:
    """Return the exit code of an evaluation that needs no going on."""
    say(f"resume=auto: {run} is finished, there is nothing to do")
    return FAILED if strict and Verdict.load(run).status == FAIL else 0


def _evaluate(plan: Plan, recipe: Recipe, net: nn.Module, strict: bool) -> int:
    try:
        with removed_on_failure(plan.new_run_dir):
            write_recipe(plan.run_dir, recipe, plan.command)
            pl.seed_everything(plan.seed, workers=True, verbose=False)
            with in_one_line():
                data: Any = make(plan.config, "data")
                check_takes(net, data, plan.config.ckpt_path)
                run = make_run(plan, module_to_evaluate(net, data.num_classes, plan.seed), data, recipe)
            code = measure(run, {}, strict=strict)
        if code >= exit_code(0):
            remove_empty(plan.new_run_dir)
        return code
    finally:
        if plan.lock is not None:
            plan.lock.release()
