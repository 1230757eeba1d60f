"""Check that a net can be attacked on these data: one forward of one test image, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from robustlit.attacks.calls import DtypeError, answer_in_float64
from robustlit.classifier import answer_on_a_copy, can_reject, check_logits
from robustlit.experiment.recipes import ConfigError

# How a forward fails on an input of the wrong shape; any other exception is a bug and keeps its traceback.
_NOT_TAKEN = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def check_takes(net: nn.Module, data: Any, origin: str, recipe: Mapping[str, Any] | None = None) -> None:
    """Raise unless a net returns logits for the test images of a DataModule, one for each class.

    A net that works in place on its input gets a copy of it from here on.

    Args:
        net: The net, in eval mode; what its random layers draw here does not change later draws.
        data: The DataModule, with `num_classes` and `name`.
        origin: The net's name in messages.
        recipe: That of the net's training, with the names of the classes (`class_names`) where these were folders.

    Raises:
        ConfigError: The net does not take the images, does not return logits (B, K) for these classes, or was trained
            on classes of other names.
        DataError, ValueError: The data are missing.
    """
    if hasattr(data, "prepare_data"):
        data.prepare_data()
    data.setup("test")
    check_classes(recipe or {}, data, origin)
    x = next(iter(data.test_dataloader()))[0][:1]
    x = x.to(next((p.device for p in net.parameters()), x.device))
    logits = _logits(net, x, origin)
    found = logits.shape[1] - can_reject(net)  # beside the one of a rejection
    if found != data.num_classes:
        also = ", besides the one of its refusal" if can_reject(net) else ""
        raise ConfigError(
            f"{origin} returns {found} logits{also} for the {data.num_classes} classes of {data.name}; build it with "
            f"{data.num_classes + can_reject(net)} outputs, return those of these classes alone, or choose the data it "
            "was trained on"
        )


def _logits(net: nn.Module, x: torch.Tensor, origin: str) -> torch.Tensor:
    """Return a net's logits (1, K) for one image; raise a ConfigError where it gives none."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            answer = _answer(net, x)
    except DtypeError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except _NOT_TAKEN as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        kind = type(error).__name__
        problem = first if isinstance(error, (RuntimeError, ValueError)) else f"{kind}: {first}"
        raise ConfigError(
            f"{origin} does not take images of shape {tuple(x.shape)}: {problem.rstrip('.;: ') or kind}; "
            f"{_way_out(net, problem)} (HYDRA_FULL_ERROR=1 shows where)"
        ) from error
    try:
        return check_logits(answer, 1)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _answer(net: nn.Module, x: torch.Tensor) -> object:
    try:
        return answer_on_a_copy(net, x)
    except RuntimeError:
        if (answer := answer_in_float64(net, x)) is None:
            raise
        return answer


def check_classes(recipe: Mapping[str, Any], data: Any, origin: str) -> None:
    """Raise a ConfigError where a net was trained on folders of other names than the classes of a DataModule.

    Args:
        recipe: That of the training; without `class_names` nothing is known, and nothing is checked.
        data: The DataModule, after `setup`.
        origin: The net's name in messages.
    """
    then, now = list(recipe.get("class_names") or ()), list(data.class_names)
    if not then or then == now:
        return
    pairs = enumerate(zip_longest(then, now, fillvalue="missing"))
    number, (old, new) = next((k, pair) for k, pair in pairs if pair[0] != pair[1])
    raise ConfigError(
        f"{origin} was trained on {len(then)} classes, and {data.name} has {len(now)}: number {number} was {old}, here "
        f"it is {new}, so labels would be compared with outputs of other classes; give the folders the names of the "
        "training, or, to evaluate the same classes in the same order under other names, class_names=null"
    )


def _way_out(net: nn.Module, problem: str) -> str:
    if "cuda" in problem.lower() or "nvidia" in problem.lower():
        return "leave the device to robustlit: no .cuda() or .to(device) within its forward"
    if type(net).__module__.partition(".")[0] != "timm":
        return "resize and repeat the channels within its forward, so that it takes the data's own pixels in [0, 1]"
    cfg = getattr(net, "pretrained_cfg", None) or {}
    name = cfg.get("architecture") if hasattr(cfg, "get") else getattr(cfg, "architecture", None)
    return f"robustlit.models.TimmNet({repr(name) if name else 'name'}) adapts channels and size"
