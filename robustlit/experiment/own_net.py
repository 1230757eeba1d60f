"""Import the net of a user's function, with weights from a file."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from robustlit.classifier import check_finite
from robustlit.experiment.recipes import ConfigError


def own_net(place: str, weights: str | None = None) -> nn.Module:
    """Return the net that a function returns, in eval mode.

    Args:
        place: The function, as `module:function`.
        weights: A file with the net's state dict; None keeps the net's own weights.

    Raises:
        ConfigError: No such module or function, no net, weights that do not fit or are not finite.
    """
    name, _, function = place.partition(":")
    if not name or not function:
        raise ConfigError(f"--model must be module:function, such as my.module:build, got {place!r}")
    if (folder := str(Path.cwd())) not in sys.path:  # as `python -m` would
        sys.path.insert(0, folder)
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
    if weights is not None:
        _load(net, weights)
    return net.eval()


def _load(net: nn.Module, weights: str) -> None:
    writes = "torch.save(net.state_dict(), FILE) writes"
    if not Path(weights).is_file():
        raise ConfigError(f"--weights: there is no file {weights}; {writes} one")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        why = f"cannot be read safely ({type(error).__name__}): it must be a state dict, as {writes} it"
        raise ConfigError(f"--weights {weights} {why}") from error
    try:
        net.load_state_dict(state.get("state_dict", state))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(f"--weights {weights} do not fit {type(net).__name__}: {error}") from error
    check_finite(net, f"--weights {weights} holds", ConfigError)
