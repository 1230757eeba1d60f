"""Attack a trained net again: a checkpoint by its stored recipe, or any net that a function returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from torch import nn

from robustlit.experiment.build import module_to_evaluate
from robustlit.experiment.composition import composed_for_net, overridden
from robustlit.experiment.migration import migrated
from robustlit.experiment.outcome import INTERRUPTED, measure
from robustlit.experiment.own_net import own_net
from robustlit.experiment.plan import Plan, make, plan_evaluation
from robustlit.experiment.preflight import check_takes
from robustlit.experiment.recipes import ConfigError, stored
from robustlit.experiment.run_folder import remove_empty, removed_on_failure, write_recipe
from robustlit.experiment.trainer import make_run, quiet_lightning
from robustlit.training import read_checkpoint
from robustlit.training.checkpoint import check_trusted, classifier_of

# What a stored recipe may name besides robustlit's own classes.
_PACKAGES = ("robustlit.attacks", "robustlit.callbacks", "robustlit.data")
_ALSO = ("pytorch_lightning.Trainer", "pytorch_lightning.loggers.CSVLogger", "robustlit.callbacks.wandb_logger")


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
    read = read_checkpoint(checkpoint)
    recipe = read["robustlit"]["config"]
    if recipe is None:
        raise ConfigError(
            f"{checkpoint} holds no recipe (it was trained from Python); evaluate it from Python: "
            "robustlit.evaluate(load_classifier(path, net=...)[0], data, attacks)"
        )
    config = overridden({**migrated(recipe), "run_dir": None, "ckpt_path": None}, overrides)
    plan = plan_evaluation(config, checkpoint, command)
    with removed_on_failure(plan.run_dir):
        model = OmegaConf.to_container(plan.config.model, resolve=True)
        net, _ = classifier_of(read, checkpoint, model=model, trusted=trusted)
        for section in ("data", "sweep", "trainer", "logger", "callbacks"):
            check_trusted(OmegaConf.to_container(plan.config[section]), (*_PACKAGES, *trusted), _ALSO)
    return _evaluate(plan, net, strict)


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
    config, net = composed_for_net(place, overrides), own_net(place, weights)
    return _evaluate(plan_evaluation(config, place, command), net, strict)


def _evaluate(plan: Plan, net: nn.Module, strict: bool) -> int:
    recipe = stored(plan.config)
    with removed_on_failure(plan.run_dir):
        write_recipe(plan.run_dir, recipe, plan.command)
        pl.seed_everything(plan.seed, workers=True, verbose=False)
        data: Any = make(plan.config, "data")
        check_takes(net, data, plan.config.ckpt_path)
        run = make_run(plan, module_to_evaluate(net, data.num_classes, plan.seed), data, recipe)
        code = measure(run, {}, strict=strict)
    if code == INTERRUPTED:
        remove_empty(plan.run_dir)
    return code
