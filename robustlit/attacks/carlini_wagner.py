"""Carlini and Wagner's attack: a constant, found by binary search, weighs distance against margin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import Active, all_positions
from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Nearest
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.checks import check_counts, check_not_negative, check_positive
from robustlit.threat import distance, expand

# The variables start at most at atanh(1 - 1e-2): at the border of the box tanh is flat, and Adam is slow. By the rule
# for the rate, nearer to the border, by this share of the mean change of a value on the way to the boundary.
_BORDER, _BORDER_SHARE = 1e-2, 0.1
_CHECKS = 10  # times in a search that an example may be found to stall
_WINDOW = 20  # least steps between two checks: Adam overshoots for about ten before its loss falls again
_STALLED = 0.9999  # an example whose least loss has not fallen below this share of the last check's has stalled
# The rule for the learning rate, in units of the way that a typical value of w has to go: in the first search, and in
# the later ones that go on from an adversarial example; and the share of it that is left at the end of a search.
_FIRST_RATE, _LATER_RATE, _LAST = 0.15, 0.1, 0.03
_ASKED = 4.0  # the first c is so many times the one that would be right: a search that fails costs more than it
_LARGEST = 1e10  # of c, as in the authors' code
_BETAS, _NEW_SHARES, _TINY = (0.9, 0.999), (0.1, 0.001), 1e-8  # Adam's defaults: Kingma, Ba, 2015, arXiv:1412.6980


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """Minimises |z - x|^2 + c max(confidence - margin(z), 0) by Adam in the variables atanh(2 z - 1).

    Carlini, Wagner: Towards evaluating the robustness of neural networks, 2017, arXiv:1608.04644, the L2 attack. Every
    example has its own c and its own Adam state, which each search starts anew; it leaves a search in which its loss
    stalls. The paper's settings: `CarliniWagner(searches=9, steps=10_000, lr=1e-2, initial_const=1e-3)`.

    Beyond the paper: Adam moves every pixel alike, so a step is lr / 2 * sqrt(pixels) long in L2, and one rate cannot
    suit 28 and 224 pixels a side. By default the rate is therefore a share of the way to the boundary, see `lr`.

    Args:
        confidence: Lead of the wanted logit, in logits, that the search asks for, the paper's kappa.
        searches: Values of c that an example tries.
        steps: Largest number of Adam steps in a search.
        lr: Learning rate of Adam, in the variables atanh(2 z - 1), in all steps of all searches, which then all start
            at the image, as in the paper. None takes 0.15 of the way that these variables would have to go if the
            margin were linear, doubled in each search after a failure; a later search goes on from the nearest
            adversarial example, at 0.1 of the way to it. Within a search the rate falls to 0.03 of that.
        initial_const: The first c. None takes four times the value that would be right if the margin were linear, so
            that the attack does not depend on the scale of the logits.

    Raises:
        ValueError: A hyper-parameter out of range, a norm other than "l2".
    """

    name: ClassVar[str] = "carlini_wagner"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    norm: str = field(default="l2", kw_only=True)
    confidence: float = 0.0
    searches: int = 5
    steps: int = 100
    lr: float | None = None
    initial_const: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "searches", "steps")
        check_not_negative(self.confidence, "confidence", "; it is in logits")
        if self.lr is not None:
            check_positive(self.lr, "lr", "; the paper's is 0.01, None means the attack's rule")
        if self.initial_const is not None:
            check_positive(self.initial_const, "initial_const", "; None means the attack's rule")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        found = Nearest(x, self.norm)
        _, margin, gradient = victim.gradient(x, criterion.margin, rows)
        reach = _reach(self.confidence - margin, gradient).to(x)  # logits may be wider than images
        goal = (x + gradient * expand(reach, x)).clamp_(0, 1)  # where the boundary is, if the margin is linear
        border = x.new_full((len(x),), _BORDER) if self.lr else _border(distance(goal, x, self.norm), x)
        const = torch.full_like(reach, self.initial_const) if self.initial_const else 2 * _ASKED * reach
        consts = _Constants(const.clamp(1e-10, _LARGEST), torch.zeros_like(reach), torch.full_like(reach, math.inf))
        for number in track(range(self.searches)):
            w, rates = _hidden(x, border), x.new_full((len(x),), self.lr or 0.0)
            if not self.lr:
                nearest, broken = found.points, expand(found.found, x)
                way = _way(_hidden(torch.where(broken, nearest, goal), border) - w)
                rates = torch.where(found.found, _LATER_RATE * way, _FIRST_RATE * 2.0**number * way)
                w = _hidden(torch.where(broken, nearest, x), border)
            images = _Images(all_positions(x), rows, criterion, x, x, w, consts.now, rates)
            consts.update(self._minimise(victim, found, images))
        return found.points

    def _minimise(self, victim: Victim, found: Nearest, images: _Images) -> Tensor:
        """Run one search and record its points in `found`. Return (B,) bool, the examples with a success."""
        success = torch.zeros_like(images.at, dtype=torch.bool)
        for step in track(range(self.steps)):
            images.tanh = images.w.tanh()
            images.z = (images.tanh + 1) / 2
            logits, images.margin, images.gradient = victim.gradient(images.z, images.criterion.margin, images.rows)
            if not victim.view_is_model:
                logits = victim.logits(images.z, images.rows)
            lead, reached = images.criterion.margin(logits), images.criterion.reached(logits)
            if self.confidence:
                reached &= lead >= self.confidence
            found.record(images.z, reached, lead, images.at)
            success[images.at] |= reached
            far = (images.z - images.x).flatten(1).square().sum(1)
            loss = far + images.c * (self.confidence - images.margin).clamp_min(0)
            # The least so far: with a large lr a single point often overshoots, and would look stalled.
            images.least = torch.fmin(images.least, loss)
            if step % max(_WINDOW, self.steps // _CHECKS) == 0:
                stalled = (images.least > images.before * _STALLED) & ~images.before.isinf()
                if not images.keep(~stalled):
                    break
                images.before = images.least
            images.descend(1.0 if self.lr else _LAST ** (step / self.steps), self.confidence, step + 1)
        return success


def _reach(lead: Tensor, gradient: Tensor) -> Tensor:
    """Return how many times the gradient (B, ...) of the margin leads to the boundary, if the margin is linear.

    It must rise by `lead` (B,). At the minimum of |z - x|^2 + c max(lead, 0) c is then twice that.
    """
    slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()
    reach = lead.clamp_min(1e-6) / slope.clamp_min(torch.finfo(slope.dtype).tiny)
    return torch.where(slope > 0, reach, 1e-3).nan_to_num(nan=1e-3).clamp(max=_LARGEST).to(gradient.dtype)


def _border(far: Tensor, x: Tensor) -> Tensor:
    """Return (B,) how near to the border of the box a start may be, for images `x` whose boundary is `far` (B,).

    At the border tanh is flat; beyond this share a start on it would be a good part of the way from the image.
    """
    return (_BORDER_SHARE * far / math.sqrt(x[0].numel())).clamp(1e-6, _BORDER)


def _hidden(z: Tensor, border: Tensor) -> Tensor:
    """Return the variables atanh(2 z - 1) of the images `z` (B, ...), kept off the border of the box."""
    most = expand(1 - border, z)
    return torch.atanh((2 * z - 1).clamp(-most, most))


def _way(change: Tensor) -> Tensor:
    """Return (B,) how far a typical value goes: the mean weighted by the square, as most hardly have to move."""
    square = change.flatten(1).square()
    return (square.square().sum(1) / square.sum(1).clamp_min(torch.finfo(square.dtype).tiny)).sqrt().clamp_min(1e-8)


@dataclass
class _Constants:
    """The c of each example (B,), between the largest that failed and the smallest that succeeded."""

    now: Tensor  # of the next search
    low: Tensor  # the largest that failed
    high: Tensor  # the smallest that succeeded

    def update(self, success: Tensor) -> None:
        """Lower c after a success (B,), else raise it."""
        self.high = torch.where(success, torch.minimum(self.high, self.now), self.high)
        self.low = torch.where(success, self.low, torch.maximum(self.low, self.now))
        self.now = torch.where(self.high.isinf(), 10 * self.now, (self.low + self.high) / 2).clamp(max=_LARGEST)


@dataclass
class _Images(Active):
    """The images of a search that have not stalled: the clean `x`, and the points as `w` = atanh(2 z - 1)."""

    x: Tensor
    w: Tensor
    c: Tensor  # (b,)
    rate: Tensor  # (b,) Adam's, at the start of the search

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.w), torch.zeros_like(self.w)  # Adam's
        self.tanh = self.gradient = self.w
        self.margin = self.c
        self.least = self.before = torch.full_like(self.c, float("inf"))  # losses (b,): so far, and at the last check

    def descend(self, share: float, confidence: float, step: int) -> None:
        """Take Adam's step number `step`, from 1, down |z - x|^2 + c max(confidence - margin, 0)."""
        pull = (self.c * (self.margin < confidence)).to(self.z)  # logits may be wider than images
        slope = (2 * (self.z - self.x) - self.gradient * expand(pull, self.z)) * (1 - self.tanh.square()) / 2
        self.mean = self.mean.lerp(slope, _NEW_SHARES[0])
        self.square = self.square.lerp(slope.square(), _NEW_SHARES[1])
        root = (self.square / (1 - _BETAS[1] ** step)).sqrt_().add_(_TINY)
        rate = expand(self.rate * share / (1 - _BETAS[0] ** step), self.w)
        self.w = self.w - rate * self.mean / root
