"""`robustlit evaluate`: a checkpoint by its stored recipe, or any net that a function returns."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_USAGE = (
    "which checkpoint? robustlit evaluate runs/NAME or runs/NAME/checkpoints/best.ckpt [key=value ...]; for a net of "
    "your own robustlit evaluate --model my.module:build"
)
# What the composed recipe says of the net that it would train.
_OF_TRAINING = ("model", "objective", "optimizer", "schedule")
_WITH_VALUE = ("--model", "--weights", "--data", "--n")


@dataclass
class _Asked:
    """What the command line asks for."""

    checkpoint: str | None = None
    overrides: list[str] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)  # of the flags that take one
    verdict: str | None = None
    strict: bool = False


def evaluate(arguments: list[str]) -> int:
    """Runs the command; returns its exit code, `robustlit.experiment.run.FAILED` for --strict and a verdict that fails.

    Raises:
        ConfigError: flags or overrides that make no sense.
    """
    asked = _parsed(arguments)
    if asked.checkpoint is None and "--model" not in asked.values:
        print(f"error: {_USAGE}", file=sys.stderr)
        return 2
    if asked.verdict is not None:
        asked.overrides.append(f"++verdict={asked.verdict}")
    if asked.checkpoint is None:
        return _own_model(asked)
    from omegaconf import OmegaConf

    from robustlit.experiment.recipes import ConfigError
    from robustlit.experiment.run import evaluate as run
    from robustlit.training import read_checkpoint

    if asked.values:
        raise ConfigError(
            f"{', '.join(asked.values)} go with --model, not with a checkpoint: use data=..., data.test_size="
        )
    stored = read_checkpoint(asked.checkpoint)["robustlit"]["config"]
    if stored is None:
        raise ConfigError(
            f"{asked.checkpoint} holds no recipe (it was trained from Python); evaluate it from Python: "
            "robustlit.evaluate(load_classifier(path, net=...)[0], data, attacks)"
        )
    config = OmegaConf.create(stored)
    config.run_dir = config.ckpt_path = None
    return run(asked.checkpoint, _overridden(config, asked.overrides), asked.trusted, strict=asked.strict)


def _parsed(arguments: list[str]) -> _Asked:
    from robustlit.experiment.recipes import ConfigError

    asked, rest = _Asked(), list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, given, value = argument.partition("=")
        if flag in _WITH_VALUE:
            if not given and not rest:
                raise ConfigError(f"{flag} needs a value")
            asked.values[flag] = value if given else rest.pop(0)
        elif flag == "--verdict":
            asked.verdict = value if given else "quick"
        elif argument == "--strict":
            asked.strict = True
        elif argument.startswith("--"):
            raise ConfigError(
                f"there is no flag {argument}; there are {', '.join(_WITH_VALUE)}, --verdict and --strict"
            )
        elif flag == "trust" and given:
            asked.trusted += value.strip("[]").split(",")
        elif given or argument.startswith("~"):  # ~key takes a key out
            asked.overrides.append(argument)
        elif asked.checkpoint is None:
            asked.checkpoint = argument
        else:
            raise ConfigError(f"one checkpoint at a time, got {asked.checkpoint} and {argument}")
    if asked.checkpoint is not None and "--model" in asked.values:
        raise ConfigError(
            f"either a checkpoint or --model, got {asked.checkpoint} and --model {asked.values['--model']}"
        )
    if asked.strict and asked.verdict is None:
        asked.verdict = "quick"
    return asked


def _own_model(asked: _Asked) -> int:
    """Evaluates the net of a function of the user's: by default its worst case at eps and its nearest adversarials."""
    from robustlit.experiment.composition import composed
    from robustlit.experiment.recipes import ConfigError, check_recipe_name, recipe_files, register_recipes
    from robustlit.experiment.run import evaluate_own

    place = asked.values["--model"]
    given = {key.lstrip("+~"): value for key, _, value in (o.partition("=") for o in asked.overrides)}
    if changed := [key for key in given if key.partition(".")[0] == "model"]:
        raise ConfigError(
            f"{changed[0]}= says which net a recipe builds, and --model {place} gives the net: leave one of them out"
        )
    if "data" in given and "--data" in asked.values:
        raise ConfigError("the data are given twice, as --data and as data=")
    files = recipe_files()
    if "recipe" in given:
        check_recipe_name(given["recipe"], files)
    register_recipes(files)
    overrides = [*([] if "recipe" in given else ["recipe=standard"]), f"data={asked.values.get('--data', 'mnist')}"]
    overrides += [] if "sweep" in given else ["sweep=worst_case"]
    if "--n" in asked.values:
        overrides.append(f"data.test_size={asked.values['--n']}")
    config = composed([*overrides, *asked.overrides])
    if theirs := [key for key in ("defense", "module") if config.get(key)]:
        raise ConfigError(
            f"recipe={given.get('recipe', 'standard')} here has a {theirs[0]} of its own, which has nothing to do with "
            f"--model {place}; what else it sets (eps, norm, data, settings of the sweep) can be given without it"
        )
    net = built(place, asked.values.get("--weights"))
    for key in _OF_TRAINING:  # which says nothing of this net
        config[key] = None
    config.recipe = "evaluate"
    config.name = config.name or place.replace(":", ".").rsplit("/", 1)[-1]
    return evaluate_own(net, config, place, strict=asked.strict)


def built(place: str, weights: str | None) -> Any:
    """The net that the function `module:function` returns, in eval mode, with weights from a file if one is given.

    Raises:
        ConfigError: no such module or function, no net, weights that do not fit.
    """
    import torch

    from robustlit.experiment.recipes import ConfigError

    name, _, function = place.partition(":")
    if not name or not function:
        raise ConfigError(f"--model must be module:function, such as my.module:build, got {place!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` would
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {name} for --model {place}: {error}; run where it lies, or install it"
        ) from error
    if not hasattr(module, function):
        raise ConfigError(f"{name} has no {function}; --model is module:function")
    build = getattr(module, function)
    _check_function(build, place)
    net = build()
    if not isinstance(net, torch.nn.Module):
        raise ConfigError(f"{place} must return the net, a torch.nn.Module, got {type(net).__name__}")
    if weights is not None:
        _load(net, weights)
    return net.eval()


def _check_function(build: Any, place: str) -> None:
    """Raises a ConfigError unless `build` can be called with nothing."""
    import torch

    from robustlit.experiment.recipes import ConfigError

    if isinstance(build, torch.nn.Module):
        raise ConfigError(f"{place} is a net; --model takes a function that returns it: def build(): return NET")
    if not callable(build):
        raise ConfigError(f"{place} must be a function that returns the net, got {type(build).__name__}")
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        raise ConfigError(
            f"{place} is called without arguments: {error}; --model takes a function that needs none: "
            f"def build(): return {place.partition(':')[2]}(...)"
        ) from None
    except ValueError:  # one that does not say what it takes
        return


def _load(net: Any, weights: str) -> None:
    """Puts the weights of a file into a net."""
    import torch

    from robustlit.experiment.recipes import ConfigError

    if not Path(weights).is_file():
        raise ConfigError(f"--weights: there is no file {weights}; torch.save(net.state_dict(), FILE) writes one")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"--weights {weights} cannot be read safely ({type(error).__name__}): it must be a state dict, as "
            "torch.save(net.state_dict(), FILE) writes it"
        ) from error
    try:
        net.load_state_dict(state.get("state_dict", state))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(f"--weights {weights} do not fit {type(net).__name__}: {error}") from error


def _overridden(config: Any, overrides: list[str]) -> Any:
    """A stored recipe with overrides applied by Hydra's rules; `group=NAME` puts that group's file in its place."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from robustlit.experiment.composition import check_choice, composed
    from robustlit.experiment.recipes import ConfigError, recipes_folder

    values = []
    for override in overrides:
        group, _, name = override.partition("=")
        if group in ("model", "recipe"):
            raise ConfigError(
                f"{override}: a checkpoint holds its net and its recipe; model.KEY=VALUE changes a value of the net, "
                f"`robustlit train {override}` trains another"
            )
        if group in ("data", "trainer", "logger", "sweep"):
            check_choice(group, name)
            chosen = OmegaConf.load(recipes_folder() / group / f"{name}.yaml")
            config[group] = OmegaConf.merge(config.trainer, chosen) if group == "trainer" else chosen
        else:
            values.append(override)
    ConfigStore.instance().store(name="stored_recipe", node=config, provider="robustlit")
    return composed(values, name="stored_recipe")
