"""Attack a trained net again: a checkpoint by its stored recipe, or any net that a function returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from robustlit.experiment.build import module_to_evaluate
from robustlit.experiment.composition import composed_for_net, overridden
from robustlit.experiment.gate import gate_of_finished
from robustlit.experiment.layout import lay_channels_last
from robustlit.experiment.migration import migrated
from robustlit.experiment.outcome import FAILED, measure
from robustlit.experiment.own_net import find_modules_here, own_net
from robustlit.experiment.pixels import warn_of_pixels
from robustlit.experiment.plan import Plan, Recipe, make, plan_evaluation
from robustlit.experiment.preflight import check_takes
from robustlit.experiment.recipes import ConfigError, stored
from robustlit.experiment.run_folder import check_trained, in_one_line, remove_empty, removed_on_failure, write_recipe
from robustlit.experiment.stored_recipe import resolved_plan, sanitized_recipe
from robustlit.experiment.trainer import make_run, prepare_process
from robustlit.experiment.zoo import ZooNet
from robustlit.processes import exit_code, leave_on_signals
from robustlit.results import OVERSTATED, Verdict
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
        strict: Return `FAILED` where the figure is overstated, and 1 where there is no verdict.
        command: The command line, as typed, stored in the run directory.
    """
    prepare_process()
    if trusted:
        find_modules_here()
    check_trained(Path(checkpoint))
    read = read_checkpoint(checkpoint)
    recipe = read["robustlit"]["config"]
    if recipe is None:
        raise ConfigError(
            f"{checkpoint} holds no recipe (it was trained from Python); evaluate it from Python: "
            "robustlit.evaluate(load_classifier(path, net=...)[0], data, attacks)"
        )
    # A key that older recipes lack; and disks are not filled because a recipe says so.
    config = overridden({**sanitized_recipe(migrated(recipe), checkpoint), "save_adversarials": False}, overrides)
    try:
        with in_one_line():
            plan = plan_evaluation(config, checkpoint, command)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the recipe in {checkpoint} cannot be resolved: {one_line(error)}") from error
    if isinstance(plan, Path):
        return _finished(plan, config, strict)
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
    prepare_process()
    config, net = composed_for_net(place, overrides), own_net(place, weights)
    if weights is not None:  # so that resume=auto takes no evaluation of others for this one
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16]
        config.model = {"weights": weights, "sha256": digest}
    return _evaluate_net(net, config, place, strict, command)


@leave_on_signals()
def evaluate_zoo_net(zoo: ZooNet, overrides: Sequence[str], *, strict: bool = False, command: str | None = None) -> int:
    """Attack a net of RobustBench, by default with AutoAttack at its leaderboard's budget; return the exit code.

    Args:
        zoo: The net.
        overrides: Of the recipe `standard` with data, norm and eps of the leaderboard and sweep=autoattack.
        strict, command: See `evaluate_checkpoint`.
    """
    prepare_process()
    given = {override.partition("=")[0] for override in overrides}
    defaults = {"data": zoo.dataset, "norm": zoo.norm, "eps": f"{zoo.eps!r}", "sweep": "autoattack"}
    own = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    place = f"robustbench:{zoo.model}"
    config, net = composed_for_net(place, [*own, *overrides]), zoo.load()
    config.model = {"robustbench": zoo.model, "dataset": zoo.dataset, "threat": zoo.norm}
    code = _evaluate_net(net, config, place, strict, command)
    say(zoo.leaderboard())
    return code


def _evaluate_net(net: nn.Module, config: DictConfig, place: str, strict: bool, command: str | None) -> int:
    plan = plan_evaluation(config, place, command)
    if isinstance(plan, Path):
        return _finished(plan, config, strict)
    return _evaluate(plan, stored(plan.config), net, strict, check=warn_of_pixels)


def _finished(run: Path, config: DictConfig, strict: bool) -> int:
    """Return the exit code of an evaluation that needs no going on."""
    say(f"resume=auto: {run} is finished, there is nothing to do")
    judged = FAILED if strict and Verdict.load(run).status == OVERSTATED else 0
    reached = gate_of_finished(run, config)
    return judged or reached


def _evaluate(
    plan: Plan, recipe: Recipe, net: nn.Module, strict: bool,
    check: Callable[[nn.Module, Any, str], None] | None = None,
) -> int:  # fmt: skip
    try:
        with removed_on_failure(plan.new_run_dir):
            write_recipe(plan.run_dir, recipe, plan.command)
            pl.seed_everything(plan.seed, workers=True, verbose=False)
            with in_one_line():
                data: Any = make(plan.config, "data")
                check_takes(net, data, plan.config.ckpt_path, recipe)
                if plan.config.get("channels_last"):  # as it was trained and attacked: rounding depends on it
                    lay_channels_last(net, data)
                if check is not None:
                    check(net, data, plan.config.ckpt_path)
                run = make_run(plan, module_to_evaluate(net, data.num_classes, plan.seed), data, recipe)
            code = measure(run, {}, strict=strict)
        if code >= exit_code(0):
            remove_empty(plan.new_run_dir)
        return code
    finally:
        if plan.lock is not None:
            plan.lock.release()
