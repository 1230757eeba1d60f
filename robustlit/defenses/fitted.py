"""What defenses that are fitted to data share: buffers shaped by the data, and a look at the data they are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.classifier import check_labels
from robustlit.threat import check_images

CHUNK = 500  # images in one pass while fitting
_LEAST_RIGHT = 0.5
_LOOK_ADVERSARIAL = (
    "the net is right on only {share:.1%} of the {name} images, fewer than {least:.0%}: they look adversarial, or of "
    "another data set than the net's. {who} is fitted on clean images of the net's own data alone"
)


class Fitted(nn.Module):
    """A module whose buffers are empty until it is fitted or loaded: their shapes come with the state."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self._buffers.items():
            stored = state_dict.get(prefix + name)
            if buffer is not None and stored is not None and stored.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


@contextmanager
def held_still(net: nn.Module) -> Iterator[torch.device]:
    """Every submodule in eval mode and no gradients, each flag restored on leaving; gives the net's device."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield next((p.device for p in net.parameters()), torch.device("cpu"))
    finally:
        for module in training:
            module.training = True


def full_precision(x: Tensor) -> torch.autocast:
    """Turns autocast off: what noise moves is lost in the rounding of bfloat16."""
    return torch.autocast(x.device.type, enabled=False)


def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) of many images (N, ...), a chunk at a time, on the CPU."""
    with held_still(net) as device, full_precision(x):
        return torch.cat([net(part.to(device)).float().cpu() for part in x.split(CHUNK)])


def check_clean(net: nn.Module, clean: tuple[Tensor, Tensor], who: str, name: str = "clean") -> Tensor:
    """Logits (N, K) of clean images, after checking that they are what they are called.

    Args:
        net: the classifier.
        clean: images (N, ...) in [0, 1] and their true classes (N,).
        who: the defense, for messages.
        name: what the images are called in messages.

    Raises:
        ValueError: images outside [0, 1], labels out of range, or the net is wrong on most of them.
    """
    x, y = clean
    check_images(x)
    logits = logits_of(net, x)
    check_labels(y, len(x), logits.shape[1], name=f"{name} labels")
    share = float((logits.argmax(1) == y.cpu()).double().mean())
    if share < _LEAST_RIGHT:
        raise ValueError(_LOOK_ADVERSARIAL.format(share=share, name=name, least=_LEAST_RIGHT, who=who))
    return logits


def some(clean: tuple[Tensor, Tensor], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` of the examples, or all where there are fewer, drawn without replacement; `seed` alone decides which."""
    x, y = clean
    if len(x) <= count:
        return x, y
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count].to(x.device)
    return x[chosen], y[chosen.to(y.device)]
