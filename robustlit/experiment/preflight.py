"""Whether a net can be attacked on these data at all: one forward of one test image, before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustlit.classifier import can_reject, check_logits
from robustlit.experiment.recipes import ConfigError

# How a forward fails on an input that it was not made for; what else goes wrong in it is a fault, to be seen in full.
_NOT_TAKEN = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def check_takes(net: nn.Module, data: Any, origin: str) -> None:
    """Raises unless a net returns logits for the test images of a DataModule, one for each class.

    Args:
        net: in eval mode; its random layers draw from a generator of their own here, so that nothing after it changes.
        data: the DataModule, with `num_classes` and `name`.
        origin: what the user calls the net.

    Raises:
        ConfigError: it does not take the images, or returns no logits (B, K), or another number of them.
        DataError, ValueError: there are no such data.
    """
    if hasattr(data, "prepare_data"):
        data.prepare_data()
    data.setup("test")
    x = next(iter(data.test_dataloader()))[0][:1]
    x = x.to(next((p.device for p in net.parameters()), x.device))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            answer = net(x)
    except _NOT_TAKEN as error:
        raise ConfigError(
            f"{origin} does not take images of shape {tuple(x.shape)}: {_first_line(error)}; {_way_out(net)} "
            "(HYDRA_FULL_ERROR=1 shows where)"
        ) from error
    try:
        logits = check_logits(answer, 1)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    _check_classes(logits, net, data, origin)


def _check_classes(logits: Tensor, net: nn.Module, data: Any, origin: str) -> None:
    """Raises a ConfigError unless there is a logit for each class of the data, and for a refusal where there is one."""
    found = logits.shape[1] - can_reject(net)
    if found != data.num_classes:
        also = ", besides the one of its refusal" if can_reject(net) else ""
        wanted = data.num_classes + can_reject(net)
        raise ConfigError(
            f"{origin} returns {found} logits{also} for the {data.num_classes} classes of {data.name}; build it with "
            f"{wanted} outputs, return those of these classes alone, or choose the data it was trained on"
        )


def _first_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind too, where that says more."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    named = line if isinstance(error, (RuntimeError, ValueError)) else f"{type(error).__name__}: {line}"
    return named.rstrip(".;: ") or type(error).__name__


def _way_out(net: nn.Module) -> str:
    if type(net).__module__.partition(".")[0] != "timm":
        return "resize and repeat the channels within its forward, so that it takes the data's own pixels in [0, 1]"
    cfg = getattr(net, "pretrained_cfg", None) or {}
    name = cfg.get("architecture") if hasattr(cfg, "get") else getattr(cfg, "architecture", None)
    return f"robustlit.models.TimmNet({repr(name) if name else 'name'}) adapts channels and size"
