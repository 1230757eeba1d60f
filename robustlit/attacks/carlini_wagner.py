"""Carlini and Wagner's attack: a constant, found by binary search, weighs distance against margin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import Active, all_positions
from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Nearest
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_counts, check_not_negative, check_positive
from robustlit.threat import expand

_BORDER = 1e-2  # share by which a start is drawn towards grey: at a border tanh is flat, and Adam is slow
_CHECKS = 10  # times in a search that an example may be found to stall
_WINDOW = 20  # least steps between two checks: Adam overshoots for about ten before its loss falls again
_STALLED = 0.9999  # an example whose least loss has not fallen below this share of the last check's has stalled
_LARGEST = 1e10  # of c, as in the authors' code
_BETAS, _NEW_SHARES, _TINY = (0.9, 0.999), (0.1, 0.001), 1e-8  # Adam's defaults: Kingma, Ba, 2015, arXiv:1412.6980


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """Minimises |z - x|^2 + c max(confidence - margin(z), 0) by Adam in the variables atanh(2 z - 1).

    Carlini, Wagner: Towards evaluating the robustness of neural networks, 2017, arXiv:1608.04644, the L2 attack. Every
    example has its own c and its own Adam state, which each search starts anew; it leaves a search in which its loss
    stalls. The paper's settings: `CarliniWagner(searches=9, steps=10_000, lr=1e-2, initial_const=1e-3)`.

    Args:
        confidence: Lead of the wanted logit, in logits, that the search asks for, the paper's kappa.
        searches: Values of c that an example tries.
        steps: Largest number of Adam steps in a search.
        lr: Learning rate of Adam, in the variables atanh(2 z - 1); fewer steps need a larger one.
        initial_const: The first c. None takes the value that would be right if the margin were linear, so that the
            attack does not depend on the scale of the logits.

    Raises:
        ValueError: A hyper-parameter out of range, a norm other than "l2".
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
        check_counts(self, "searches", "steps")
        check_not_negative(self.confidence, "confidence", "; it is in logits")
        check_positive(self.lr, "lr", "; the paper's is 0.01")
        if self.initial_const is not None:
            check_positive(self.initial_const, "initial_const", "; None means the attack's rule")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        found = Nearest(x, self.norm)
        w = torch.atanh((2 * x - 1) * (1 - _BORDER))
        low, high = x.new_zeros(len(x)), x.new_full((len(x),), float("inf"))
        consts = _Constants(None if self.initial_const is None else torch.full_like(low, self.initial_const), low, high)
        for _ in range(self.searches):
            images = _Images(all_positions(x), rows, criterion, x, x, w)
            consts.update(self._minimise(victim, found, images, consts))
        return found.points

    def _minimise(self, victim: Victim, found: Nearest, images: _Images, consts: _Constants) -> Tensor:
        """Run one search and record its points in `found`. Return (B,) bool, the examples with a success."""
        success = torch.zeros_like(images.at, dtype=torch.bool)
        for step in range(self.steps):
            images.tanh = images.w.tanh()
            images.z = (images.tanh + 1) / 2
            logits, images.margin, images.gradient = victim.gradient(images.z, images.criterion.margin, images.rows)
            if consts.now is None:
                consts.now = _guess(self.confidence - images.margin, images.gradient)
            if step == 0:
                images.c = consts.now
            if not victim.sees_itself:
                logits = victim.logits(images.z, images.rows)
            lead, reached = images.criterion.margin(logits), images.criterion.reached(logits)
            if self.confidence:
                reached &= lead >= self.confidence
            found.record(images.z, reached, lead, images.at)
            success[images.at] |= reached
            distance = (images.z - images.x).flatten(1).square().sum(1)
            loss = distance + images.c * (self.confidence - images.margin).clamp_min(0)
            # The least so far: with a large lr a single point often overshoots, and would look stalled.
            images.least = torch.fmin(images.least, loss)
            if step % max(_WINDOW, self.steps // _CHECKS) == 0:
                stalled = (images.least > images.before * _STALLED) & ~images.before.isinf()
                if not images.keep(~stalled):
                    break
                images.before = images.least
            images.descend(self.lr, self.confidence, step + 1)
        return success


def _guess(lead: Tensor, gradient: Tensor) -> Tensor:
    """Return the c (B,) that would be right if the margin, which must rise by `lead` (B,), were linear.

    With its gradient g (B, ...), |z - x| = lead / |g| there, and the minimum has 2 |z - x| = c |g|.
    """
    slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()
    guess = 2 * lead.clamp_min(1e-6) / slope.clamp_min(torch.finfo(slope.dtype).tiny)
    return torch.where(slope > 0, guess, 1e-3).nan_to_num(nan=1e-3).clamp(1e-10, _LARGEST)


@dataclass
class _Constants:
    """The c of each example (B,), between the largest that failed and the smallest that succeeded."""

    now: Tensor | None  # of the next search; None until the first gradient is known
    low: Tensor  # the largest that failed
    high: Tensor  # the smallest that succeeded

    def update(self, success: Tensor) -> None:
        """Lower c after a success (B,), else raise it."""
        assert self.now is not None
        self.high = torch.where(success, torch.minimum(self.high, self.now), self.high)
        self.low = torch.where(success, self.low, torch.maximum(self.low, self.now))
        self.now = torch.where(self.high.isinf(), 10 * self.now, (self.low + self.high) / 2).clamp(max=_LARGEST)


@dataclass
class _Images(Active):
    """The images of a search that have not stalled: the clean `x`, and the points as `w` = atanh(2 z - 1)."""

    x: Tensor
    w: Tensor

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.w), torch.zeros_like(self.w)  # Adam's
        self.tanh = self.gradient = self.w
        self.c = self.margin = self.w.flatten(1)[:, 0]
        self.least = self.before = torch.full_like(self.c, float("inf"))  # losses (b,): so far, and at the last check

    def descend(self, lr: float, confidence: float, step: int) -> None:
        """Take Adam's step number `step`, from 1, along the gradient of |z - x|^2 + c max(confidence - margin, 0)."""
        pull = self.c * (self.margin < confidence)
        slope = (2 * (self.z - self.x) - self.gradient * expand(pull, self.z)) * (1 - self.tanh.square()) / 2
        self.mean = self.mean.lerp(slope, _NEW_SHARES[0])
        self.square = self.square.lerp(slope.square(), _NEW_SHARES[1])
        root = (self.square / (1 - _BETAS[1] ** step)).sqrt_().add_(_TINY)
        self.w = self.w - lr / (1 - _BETAS[0] ** step) * self.mean / root
