"""The statistics of a batch in BatchNorm layers, so that bounds are those of the net as it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from robustlit.classifier import unwrapped

Statistics = dict[str, Tensor]  # names of a net's buffers, such as "features.1.running_mean", and other values for them


def logits_and_statistics(net: nn.Module, x: Tensor, *, gradient: bool) -> tuple[Tensor, Statistics]:
    """Return the logits of images (B, ...), and what BatchNorm layers in training mode took from them.

    Args:
        net, x: From images to logits (B, K). A compiled net with such layers is called as it was before: what
            `torch.compile` made calls no hooks.
        gradient: Whether the logits need gradients. The statistics have them always.
    """
    trains = bool(_training_layers(net))
    called = getattr(net, "_orig_mod", net) if trains else net
    with recorded(net) as statistics, torch.set_grad_enabled(gradient or trains):
        logits = called(x)
    return logits if gradient else logits.detach(), statistics


def statistics_of(net: nn.Module, x: Tensor) -> Statistics:
    """Return the statistics alone; a net without BatchNorm layers in training mode has none, and is not called."""
    return logits_and_statistics(net, x, gradient=False)[1] if _training_layers(net) else {}


@contextmanager
def recorded(net: nn.Module) -> Iterator[Statistics]:
    """Record the mean and the variance of what enters each BatchNorm layer of `net` that is in training mode."""
    found: Statistics = {}

    def record(name: str, given: tuple[Any, ...]) -> None:
        with torch.autocast(given[0].device.type, enabled=False):
            values = given[0].float()
            others = [dim for dim in range(values.ndim) if dim != 1]
            found[f"{name}.running_var"], found[f"{name}.running_mean"] = torch.var_mean(values, others, correction=0)

    with ExitStack() as stack:
        for name, layer in _training_layers(net).items():
            hook = layer.register_forward_pre_hook(lambda _, given, name=name: record(name, given))
            stack.callback(hook.remove)
        yield found


class WithStatistics(nn.Module):
    """A net with other values for its running statistics, for as long as it is called through this."""

    def __init__(self, net: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.net, self.statistics = unwrapped(net), statistics

    def forward(self, x: Any) -> Any:
        """Return what the net returns."""
        return functional_call(self.net, self.statistics, (x,))


def _training_layers(net: nn.Module) -> dict[str, _BatchNorm]:
    layers = {name: module for name, module in unwrapped(net).named_modules() if isinstance(module, _BatchNorm)}
    return {name: layer for name, layer in layers.items() if layer.training and layer.running_mean is not None}
