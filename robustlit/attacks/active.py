"""The examples that a search still works on, and the classes that it may aim at."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.threat import Ball

_STEPS_BETWEEN_CHECKS_ON_GPU = 4  # on a GPU, looking for finished examples waits for the device; on a CPU it is free
_Examples = TypeVar("_Examples", bound="Active")


def check_every(x: Tensor) -> int:
    """Return after how many steps to look for finished examples: each step on a CPU, every few on a GPU."""
    return _STEPS_BETWEEN_CHECKS_ON_GPU if x.is_cuda else 1


@dataclass
class Active:
    """The examples still under attack.

    A search that keeps more for each example (a velocity, a ball, ...) adds it as a field of a subclass. Every field
    that is a Tensor, Criterion, Ball or Draws has one entry per example, and `keep` shortens them all.
    """

    at: Tensor  # (b,) positions in the batch that the search was given, where `Best` records
    rows: Tensor  # (b,) positions in the victim's batch, where passes are counted
    criterion: Criterion
    z: Tensor  # (b, ...) current points

    def select(self: _Examples, positions: Tensor) -> _Examples:
        """Return a copy that holds the examples at `positions` (k,)."""
        chosen = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(chosen, name, value[positions])
            elif isinstance(value, (Criterion, Ball, Draws)):
                setattr(chosen, name, value.select(positions))
        return chosen

    def keep(self, stay: Tensor) -> bool:
        """Drop the examples outside the mask `stay` (b,). Return whether any is left."""
        left = torch.nonzero(stay).squeeze(1)
        if len(left) < len(stay):
            vars(self).update(vars(self.select(left)))
        return len(left) > 0

    def drop(self, finished: Tensor, step: int) -> bool:
        """Drop the examples in the mask `finished` (b,); on a GPU every few steps only. Return whether any is left."""
        return step % check_every(self.z) != 0 or self.keep(~finished)


def rivals(criterion: Criterion, logits: Tensor) -> Tensor:
    """Return the wrong classes (b, K - 1) of examples with these logits, likeliest first."""
    return criterion.other_logits(logits).argsort(1, descending=True)[:, : criterion.classes(logits) - 1]


def all_positions(x: Tensor) -> Tensor:
    """Return the positions 0, 1, ... of the examples `x` (b, ...)."""
    return torch.arange(len(x), device=x.device)
