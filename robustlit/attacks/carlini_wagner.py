"""Carlini and Wagner's attack: distance and margin traded off by a constant that is searched for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import Attack
from robustlit.attacks.ddn import Nearest
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.threat import expand

_BORDER = (
    1e-2  # share by which a start is drawn towards grey: at a border tanh is flat and Adam takes hundreds of steps
)
_CHECKS = 10  # times in a search that an example may be found to stall
_WINDOW = 20  # steps at least between two looks: Adam overshoots for about ten before its loss falls again
_LARGEST = 1e10


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """Minimises |z - x|^2 + c max(confidence - margin(z), 0) by Adam in the variables atanh(2 z - 1).

    Carlini, Wagner: Towards evaluating the robustness of neural networks, 2017, arXiv:1608.04644, the L2 attack. Every
    example searches its own c and has its own Adam state, which each search starts anew; it leaves a search in which
    its loss stalls. The paper's settings: `CarliniWagner(searches=9, steps=10_000, lr=1e-2, initial_const=1e-3)`.

    Args:
        confidence: by how much the wanted logit must lead while searching, the paper's kappa.
        searches: how many values of c an example tries.
        steps: at most so many Adam steps in a search.
        lr: Adam's, in the variables atanh(2 z - 1); fewer steps need a larger one.
        initial_const: the first c. None takes what would be right if the margin were linear, so that the attack does
            not depend on the scale of the logits.

    Raises:
        ValueError: a hyper-parameter out of range, a norm other than "l2".
    """

    name: ClassVar[str] = "carlini_wagner"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    norm: str = field(default="l2", kw_only=True)
    confidence: float = 0.0
    searches: int = 5
    steps: int = 100
    lr: float = 0.1
    initial_const: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.searches, "searches")
        check_count(self.steps, "steps")
        if not _is_number(self.confidence) or self.confidence < 0:
            raise ValueError(f"confidence must be at least 0 and finite, in logits, got {self.confidence!r}")
        if not _is_number(self.lr) or self.lr <= 0:
            raise ValueError(f"lr must be positive and finite, got {self.lr!r}; the paper's is 0.01")
        if self.initial_const is not None and (not _is_number(self.initial_const) or self.initial_const <= 0):
            raise ValueError(
                f"initial_const must be positive, or None for the attack's rule, got {self.initial_const!r}"
            )

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        found = Nearest(x)
        start = torch.atanh((2 * x - 1) * (1 - _BORDER))
        low, high = x.new_zeros(len(x)), x.new_full((len(x),), float("inf"))
        c = None if self.initial_const is None else torch.full_like(low, self.initial_const)
        for _ in range(self.searches):
            c, won = self._minimise(victim, found, start, criterion, rows, c)
            high = torch.where(won, torch.minimum(high, c), high)
            low = torch.where(won, low, torch.maximum(low, c))
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2).clamp(max=_LARGEST)
        return found.points

    def _minimise(
        self, victim: Victim, found: Nearest, start: Tensor, criterion: Criterion, rows: Tensor, c: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One search: what it meets goes into `found`. Returns c (B,) and whether the example had a success (B,)."""
        w, x, everyone = start, found.x, c
        inside = torch.arange(len(start), device=start.device)
        won = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        # Against the least loss so far: with a large lr a single iterate often overshoots, and would look stalled.
        before = x.new_full((len(x),), float("inf"))
        least = before
        for step in range(self.steps):
            tanh = w.tanh()
            z = (tanh + 1) / 2
            logits, margin, gradient = victim.gradient(z, criterion.margin, rows)
            if everyone is None:  # |z - x| = lead / |g| on a linear margin, where 2 |z - x| = c |g|
                lead = (self.confidence - margin).clamp_min(1e-6)
                slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()
                guess = 2 * lead / slope.clamp_min(torch.finfo(slope.dtype).tiny)
                c = everyone = torch.where(slope > 0, guess, 1e-3).nan_to_num(nan=1e-3).clamp(1e-10, _LARGEST)
            assert c is not None
            judged = logits if victim.sees_itself else victim.logits(z, rows)
            lead = criterion.margin(judged)
            reached = criterion.reached(judged)
            if self.confidence:
                reached &= lead >= self.confidence
            found.meet(z, reached, lead, inside)
            won[inside] |= reached
            loss = (z - x).flatten(1).square().sum(1) + c * (self.confidence - margin).clamp_min(0)
            least = torch.fmin(least, loss)
            if step % max(_WINDOW, self.steps // _CHECKS) == 0:
                stay = torch.nonzero(~(least > before * 0.9999) | before.isinf()).squeeze(1)
                if not len(stay):
                    break
                before = least = least[stay]
                if len(stay) < len(loss):
                    inside, rows, criterion, c, x, w, z, tanh = (
                        inside[stay], rows[stay], criterion.select(stay), c[stay],
                        x[stay], w[stay], z[stay], tanh[stay],
                    )  # fmt: skip
                    margin, gradient, mean, square = margin[stay], gradient[stay], mean[stay], square[stay]
            pull = c * (margin < self.confidence)  # the hinge
            slope_w = (2 * (z - x) - gradient * expand(pull, z)) * (1 - tanh.square()) / 2
            mean = mean.lerp(slope_w, 0.1)
            square = square.lerp(slope_w.square(), 0.001)
            root = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
            w = w - self.lr / (1 - 0.9 ** (step + 1)) * mean / root
        assert everyone is not None
        return everyone, won


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
