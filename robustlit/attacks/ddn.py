"""DDN: the direction follows the gradient, the norm follows success."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Nearest
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import LossPerExample, Victim
from robustlit.checks import check_count, check_share
from robustlit.threat import check_eps, expand


@dataclass(frozen=True)
class DDN(Attack):
    """Decoupled direction and norm: a near adversarial example in L2 at a hundred passes.

    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger: Decoupling direction and norm for efficient gradient-based
    L2 adversarial attacks and defenses, 2019, arXiv:1811.09600. Each step adds a unit gradient to the perturbation,
    then sets its norm: a share `gamma` smaller after a success, larger after a failure. The paper rounds to 255 levels;
    here pixels stay real numbers.

    Args:
        steps: Number of gradient steps; their lengths fall from 1 to 0.01 pixel units along half a cosine.
        gamma: Share by which the norm changes in a step, in (0, 1).
        initial_norm: L2 norm of the first perturbation, in pixel units.

    Raises:
        ValueError: steps, gamma or initial_norm out of range, a norm other than "l2".
    """

    name: ClassVar[str] = "ddn"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    norm: str = field(default="l2", kw_only=True)
    steps: int = 100
    gamma: float = 0.05
    initial_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        check_share(self.gamma, "gamma", "; the paper's is 0.05")
        check_eps(self.initial_norm, "l2", "initial_norm")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        nearest = Nearest(x, self.norm)
        walk = Walk(nearest, x, x.new_full((len(x),), self.initial_norm), draws)
        for step in track(range(self.steps)):
            length = x.new_full((len(x),), half_cosine(step, self.steps))
            walk.step(victim, criterion, rows, criterion.log_odds, length, self.gamma)
        return nearest.points


def half_cosine(step: int, steps: int) -> float:
    """Return the length of step number `step`, in pixel units: from 1 down to 0.01 along half a cosine."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2


class Walk:
    """A perturbation along summed unit gradients; its norm grows after a failure and shrinks after a success.

    It starts at `start` (B, ...), and has `norm` (B,) after the first step; where the gradient is zero, its direction
    is drawn. `nearest` records every point.
    """

    def __init__(self, nearest: Nearest, start: Tensor, norm: Tensor, draws: Draws) -> None:
        self.nearest, self.z, self.norm = nearest, start, norm
        x = nearest.x
        self.farthest = torch.linalg.vector_norm(torch.maximum(x, 1 - x).flatten(1), dim=1)
        self.random = unit(draws.normal(x))

    def step(
        self, victim: Victim, criterion: Criterion, rows: Tensor, loss: LossPerExample, length: Tensor, gamma: float
    ) -> None:
        """Judge the point, move `length` (B,) along the gradient of `loss`, change the norm by the share `gamma`."""
        x = self.nearest.x
        logits, _, gradient = victim.gradient(self.z, loss, rows)
        if not victim.view_is_model:
            logits = victim.logits(self.z, rows)
        reached = criterion.reached(logits)
        self.nearest.record(self.z, reached, criterion.margin(logits))
        direction = unit(gradient)
        flat = ~direction.flatten(1).any(1)
        delta = self.z - x + expand(length, x) * torch.where(expand(flat, x), self.random, direction)
        self.norm = torch.minimum(self.norm * torch.where(reached, 1 - gamma, 1 + gamma).to(x), self.farthest)
        self.z = (x + unit(delta) * expand(self.norm, x)).clamp_(0, 1)


def unit(v: Tensor) -> Tensor:
    """Return `v` (B, ...) scaled to an L2 norm of 1 for each example; zero stays zero."""
    # Scaled by its largest entry first: the squares of entries below 1e-23 would sum to zero.
    largest = v.flatten(1).abs().amax(1)
    v = v / expand(torch.where(largest > torch.finfo(v.dtype).tiny, largest, torch.inf), v)
    return v / expand(torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(1), v)
