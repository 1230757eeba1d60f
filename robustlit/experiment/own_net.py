"""Build a net of the user's, for an evaluation or by a recipe, with weights from a file."""

from __future__ import annotations

import importlib
import inspect
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig
from torch import nn

from robustlit.experiment.plan import Recipe, make
from robustlit.experiment.recipes import ConfigError, read_only, stored
from robustlit.experiment.weights import fill
from robustlit.tracking.console import say


def own_net(place: str, weights: str | None = None) -> nn.Module:
    """Return the net that a function returns, in eval mode.

    Args:
        place: The function, as `module:function`.
        weights: A file with the net's weights, see `fill`; None keeps the net's own.

    Raises:
        ConfigError: No such module or function, no net, weights that do not fit or are not finite.
    """
    name, _, function = place.partition(":")
    if not name or not function:
        raise ConfigError(f"--model must be module:function, such as my.module:build, got {place!r}")
    find_modules_here()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        message = f"cannot import {name} for --model {place}: {error}; run where it lies, or install it"
        raise ConfigError(message) from error
    if not hasattr(module, function):
        raise ConfigError(f"{name} has no {function}; --model is module:function")
    build = getattr(module, function)
    if isinstance(build, nn.Module):
        raise ConfigError(f"{place} is a net; --model takes a function that returns it: def build(): return NET")
    if not callable(build):
        raise ConfigError(f"{place} must be a function that returns the net, got {type(build).__name__}")
    try:
        with suppress(ValueError):  # a built-in function without a signature
            inspect.signature(build).bind()
    except TypeError as error:
        raise ConfigError(
            f"{place} is called without arguments: {error}; --model takes a function that needs none: "
            f"def build(): return {function}(...)"
        ) from None
    net = build()
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{place} must return the net, a torch.nn.Module, got {type(net).__name__}")
    for line in [] if weights is None else fill(net, weights, "--weights"):
        say(line)
    return net.eval()


def find_modules_here() -> None:
    """Let modules in the current folder be imported, as `python -m` would; installed ones of the same name win."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def recipes_net(config: DictConfig, *, filled: bool = True) -> nn.Module:
    """Build the `model` of a recipe and, if it is to be `filled`, load the file that `model.weights` names.

    Raises:
        ConfigError: The file does not fit, see `fill`.
    """
    if not str(config.model.get("_target_", "")).startswith("robustlit."):
        find_modules_here()
    file = weights_of(config.model)
    net = make(read_only(without_weights(stored(config))), "model")
    if not isinstance(net, nn.Module):
        raise ConfigError(f"model must build a net, a torch.nn.Module, got {type(net).__name__}")
    if filled and file is not None:
        for line in fill(net, file, "model.weights"):
            say(line)
        say(f"{type(net).__name__} starts from the weights in {file}")
    # Lightning keeps the modes, and the function may be the one that --model takes, whose net is in eval mode.
    return net if net.training else net.train()


def weights_of(model: Any) -> str | None:
    """Return the file that the `model` of a recipe names; None where a class has an argument `weights` of its own."""
    file = model.get("weights") if not _takes_weights(model) else None
    return None if file is None else str(file)


def without_weights(recipe: Recipe) -> Recipe:
    """Return a recipe by which a net is built that opens no file: as it is stored in a checkpoint."""
    bare: Recipe = _without_weights(recipe)
    return bare


def _without_weights(part: Any) -> Any:
    # A defense holds the model's settings again, as its `net`.
    if isinstance(part, list):
        return [_without_weights(each) for each in part]
    if not isinstance(part, dict):
        return part
    drops = "weights" in part and "_target_" in part and not _takes_weights(part)
    return {key: _without_weights(each) for key, each in part.items() if not (drops and key == "weights")}


def _takes_weights(model: Any) -> bool:
    """Return whether what the `model` of a recipe builds takes an argument `weights`, as torchvision's nets do."""
    target = str(model.get("_target_", ""))
    if target.startswith("robustlit."):
        return False
    try:
        return "weights" in inspect.signature(get_object(target)).parameters
    except Exception:  # what cannot be imported is reported where it is built
        return False
