"""What defenses that are fitted to data share: their buffers, checks of the data, and a differentiable view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks.surroundings import held_in_eval
from robustlit.classifier import check_labels, default_batch_size, predicted
from robustlit.threat import check_images

_LEAST_RIGHT = 0.5  # accuracy below which images are not taken for clean ones


class Fitted(nn.Module):
    """A module whose buffers are empty until it is fitted or loaded; their shapes come with the state."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self._buffers.items():
            stored = state_dict.get(prefix + name)
            if buffer is not None and stored is not None and stored.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class AttackView(nn.Module):
    """A differentiable method in place of a defense's forward, from images to scores, with the defense's parameters."""

    def __init__(self, defense: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.defense, self.function = defense, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@contextmanager
def frozen(net: nn.Module) -> Iterator[torch.device]:
    """Hold every submodule in eval mode, without gradients; yield the net's device."""
    with held_in_eval(net), torch.no_grad():
        yield next((p.device for p in net.parameters()), torch.device("cpu"))


def full_precision(x: Tensor) -> torch.autocast:
    """Turn autocast off: bfloat16 rounds away the effect of noise."""
    return torch.autocast(x.device.type, enabled=False)


def check_clean(net: nn.Module, clean: tuple[Tensor, Tensor], defense: str, name: str = "clean") -> Tensor:
    """Return the logits (N, K) of clean images (N, ...), on the CPU; `defense` and `name` are for messages.

    Raises:
        ValueError: Images are outside [0, 1], labels out of range, logits that are not finite, or the net is wrong on
            most of the images.
    """
    x, y = clean
    check_images(x)
    with frozen(net) as device, full_precision(x):
        parts = x.split(default_batch_size(x.shape))
        logits = torch.cat([net(part.to(device, copy=True)).float().cpu() for part in parts])  # it may work in place
    check_labels(y, len(x), logits.shape[1], name=f"{name} labels")
    check_finite_logits(logits, f"{name} images", defense)
    share = float((predicted(logits) == y.cpu()).double().mean())
    if share < _LEAST_RIGHT:
        raise ValueError(
            f"the net is right on only {share:.1%} of the {name} images, fewer than {_LEAST_RIGHT:.0%}: they look "
            f"adversarial, or of another data set than the net's. {defense} is fitted on clean images of the net's own "
            "data alone"
        )
    return logits


def check_finite_logits(logits: Tensor, images: str, defense: str) -> None:
    """Raise a ValueError unless all logits (N, K) are finite; `images` and `defense` are for the message."""
    if bad := int((~logits.isfinite().all(1)).sum()):
        raise ValueError(
            f"the net's logits are not finite for {bad} of {len(logits)} {images}, so {defense} cannot be fitted to "
            "them; the net is broken, or overflows: train it again, or find out where"
        )


def subset(clean: tuple[Tensor, Tensor], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` of the examples, or all where there are fewer, drawn without replacement by `seed` alone."""
    x, y = clean[0], clean[1].long()
    if len(x) <= count:
        return x, y
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count].to(x.device)
    return x[chosen], y[chosen.to(y.device)]
