"""DDN: the direction follows the gradient, the norm follows success."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import Attack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import LossPerExample, Victim
from robustlit.checks import check_count
from robustlit.threat import check_eps, distance, expand


@dataclass(frozen=True)
class DDN(Attack):
    """Decoupled direction and norm: the nearest adversarial in L2 at a hundred passes.

    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger: Decoupling direction and norm for efficient gradient-based
    L2 adversarial attacks and defenses, 2019, arXiv:1811.09600. Each step adds a unit gradient to the perturbation,
    then sets its norm: a share `gamma` smaller after a success, larger after a failure. The paper rounds to 255 levels;
    here pixels stay real numbers.

    Args:
        steps: number of gradient steps; their lengths fall from 1 to 0.01 pixel units along half a cosine.
        gamma: by which share the norm changes in a step, in (0, 1).
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
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, Real) or not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be a share in (0, 1), got {self.gamma!r}; the paper's is 0.05")
        check_eps(self.initial_norm, "l2", "initial_norm")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        witness = Nearest(x)
        walk = Walk(witness, x, x.new_full((len(x),), self.initial_norm), draws)
        for step in range(self.steps):
            length = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            walk.step(victim, criterion, rows, criterion.log_odds, x.new_full((len(x),), length), self.gamma)
        return witness.points


class Nearest:
    """The nearest witness that each example has met; where there is none, the attempt of highest margin.

    Args:
        x: the clean images, (B, ...).
    """

    def __init__(self, x: Tensor) -> None:
        self.x, self.points = x, x.clone()
        self.norms = x.new_full((len(x),), float("inf"))  # of the witnesses; infinite where there is none
        self.margins = torch.full_like(self.norms, -float("inf"))

    @property
    def found(self) -> Tensor:
        """(B,) bool, which examples have a witness."""
        return self.norms.isfinite()

    def meet(self, z: Tensor, reached: Tensor, margins: Tensor, inside: Tensor | None = None) -> None:
        """Takes in one point of each example.

        Args:
            z: the points, (b, ...).
            reached: (b,) whether each is a witness.
            margins: (b,) their margins.
            inside: (b,) which examples these are; None for all, in order.
        """
        at: Tensor | slice = slice(None) if inside is None else inside
        norms, found = distance(z, self.x[at], "l2"), self.found[at]
        nearer = reached & (norms < self.norms[at])
        closer = ~found & ~reached & (margins > self.margins[at])
        self.points[at] = torch.where(expand(nearer | closer, z), z, self.points[at])
        self.norms[at] = torch.where(nearer, norms, self.norms[at])
        self.margins[at] = torch.where(closer, margins.to(self.margins.dtype), self.margins[at])


class Walk:
    """A perturbation whose direction gathers unit gradients while its norm hunts for the boundary.

    Args:
        witness: what meets every point that is judged.
        start: where to start, (B, ...).
        norm: of the perturbation after the first step, before success is known, (B,).
        draws: a direction to leave a start from where the gradient is zero.
    """

    def __init__(self, witness: Nearest, start: Tensor, norm: Tensor, draws: Draws) -> None:
        self.witness, self.z, self.norm = witness, start, norm
        x = witness.x
        self.farthest = torch.linalg.vector_norm(torch.maximum(x, 1 - x).flatten(1), dim=1)
        self.random = unit(draws.normal(x))

    def step(
        self, victim: Victim, criterion: Criterion, rows: Tensor, loss: LossPerExample, length: Tensor, gamma: float
    ) -> None:
        """Judges the point, moves `length` (B,) along the gradient of `loss`, and sets the norm."""
        x = self.witness.x
        logits, _, gradient = victim.gradient(self.z, loss, rows)
        if not victim.sees_itself:
            logits = victim.logits(self.z, rows)
        reached = criterion.reached(logits)
        self.witness.meet(self.z, reached, criterion.margin(logits))
        direction = unit(gradient)
        blind = ~direction.flatten(1).any(1)
        delta = self.z - x + expand(length, x) * torch.where(expand(blind, x), self.random, direction)
        self.norm = torch.minimum(self.norm * torch.where(reached, 1 - gamma, 1 + gamma), self.farthest)
        self.z = (x + unit(delta) * expand(self.norm, x)).clamp_(0, 1)


def unit(v: Tensor) -> Tensor:
    """`v` (B, ...) at an L2 norm of 1 for each example; zero stays zero."""
    # Scaled by its largest entry first: the squares of entries below 1e-23 would sum to zero.
    largest = v.flatten(1).abs().amax(1)
    v = v / expand(torch.where(largest > torch.finfo(v.dtype).tiny, largest, torch.inf), v)
    return v / expand(torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(1), v)
