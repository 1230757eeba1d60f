"""`robustlit evaluate`: a checkpoint by its stored recipe, or any net that a function returns."""

from __future__ import annotations

import importlib
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_USAGE = (
    "which checkpoint? robustlit evaluate runs/NAME or runs/NAME/checkpoints/best.ckpt [key=value ...]; for a net of "
    "your own robustlit evaluate --model my.module:build"
)
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
    """Runs the command; returns its exit code, `robustlit.run.FAILED` for --strict and a verdict that fails.

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

    from robustlit.config import ConfigError
    from robustlit.run import evaluate as run
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
    from robustlit.config import ConfigError

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
    from hydra import compose, initialize_config_dir

    from robustlit.config import ConfigError, recipe_files, recipes_folder, register_recipes
    from robustlit.run import evaluate_own

    place = asked.values["--model"]
    groups = {o.partition("=")[0] for o in asked.overrides}
    overrides = ["recipe=standard", f"data={asked.values.get('--data', 'mnist')}"]
    overrides += [] if "sweep" in groups else ["sweep=worst_case"]
    if "--n" in asked.values:
        overrides.append(f"data.test_size={asked.values['--n']}")
    if "data" in groups and "--data" in asked.values:
        raise ConfigError("the data are given twice, as --data and as data=")
    net = built(place, asked.values.get("--weights"))
    register_recipes(recipe_files())
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        config = compose("base", overrides=[*overrides, *asked.overrides, "hydra.verbose=false"])
    config.recipe = "evaluate"
    config.name = config.name or place.replace(":", ".").rsplit("/", 1)[-1]
    return evaluate_own(net, config, place, strict=asked.strict)


def built(place: str, weights: str | None) -> Any:
    """The net that the function `module:function` returns, in eval mode, with weights from a file if one is given.

    Raises:
        ConfigError: no such module or function, no net, weights that do not fit.
    """
    import torch

    from robustlit.config import ConfigError

    name, _, function = place.partition(":")
    if not name or not function:
        raise ConfigError(f"--model must be module:function, such as my.module:build, got {place!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` would
        sys.path.insert(0, folder)
    try:
        build = getattr(importlib.import_module(name), function)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {name} for --model {place}: {error}; run where it lies, or install it"
        ) from error
    except AttributeError:
        raise ConfigError(f"{name} has no {function}; --model is module:function") from None
    net = build()
    if not isinstance(net, torch.nn.Module):
        raise ConfigError(f"{place} must return the net, a torch.nn.Module, got {type(net).__name__}")
    if weights is not None:
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
    return net.eval()


def _overridden(config: Any, overrides: list[str]) -> Any:
    """A stored recipe with overrides applied by Hydra's rules; `group=NAME` puts that group's file in its place."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from robustlit.config import ConfigError, recipes_folder

    values = []
    for override in overrides:
        group, _, name = override.partition("=")
        if group in ("data", "trainer", "logger", "sweep"):
            file = recipes_folder() / group / f"{name}.yaml"
            if not file.is_file():
                there = ", ".join(sorted(f.stem for f in file.parent.glob("*.yaml")))
                raise ConfigError(f"there is no {group} {name!r}; there are {there}")
            chosen = OmegaConf.load(file)
            config[group] = OmegaConf.merge(config.trainer, chosen) if group == "trainer" else chosen
        else:
            values.append(override)
    ConfigStore.instance().store(name="stored_recipe", node=config, provider="robustlit")
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        return compose("stored_recipe", overrides=values)
