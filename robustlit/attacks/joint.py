"""JointAttack: misleads the classifier and the detector that watches it, both at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.active import all_positions, check_every, rivals
from robustlit.attacks.ascent import AscentState
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.attacks.worst_case import DECAY
from robustlit.checks import check_choice, check_counts, check_not_negative, check_positive
from robustlit.classifier import attack_view, can_reject, draws_of, unwrapped
from robustlit.threat import Ball

METHODS = ("weighted", "alternate")
_FIRST_STEP = 0.5  # length of the first step as a multiple of eps; the length falls linearly to 0
_FACTOR = 10.0  # the weight grows or shrinks by it until a search has failed on either side
_FAR = 1e6  # an excess below the threshold that no penalty reaches
_NO_DETECTION = (
    "JointAttack needs a model with detection(x) -> (logits (B, K), excess (B,)), which {name} has not: without a "
    "detector PGD, APGD or WorstCase attack it through its attack_view(); for a defense that looks at logits in "
    "another way there is LogitMatching"
)
_BAD_DETECTION = (
    "detection(x) of {name} must return logits (B, K) and by how much the score exceeds its threshold (B,) for a batch "
    "of {batch}, got {found}"
)


@dataclass(frozen=True)
class JointAttack(BudgetAttack):
    """Climbs margin - weight * relu(excess + slack), with a weight per example that is found by binary search.

    The margin is that of the net behind the detector, cut at `confidence`; the excess is the detector's score less its
    threshold, as in Carlini, Wagner: Adversarial examples are not easily detected, 2017, arXiv:1705.07263. The weight
    grows where a search fooled the net but was flagged, and shrinks where the net was not fooled. "alternate" climbs
    the margin until it is `confidence`, and from there on lowers the excess, as Bryniarski, Hingun, Pachuca, Wang,
    Carlini: Evading adversarial example detection defenses with orthogonal projected gradient descent, 2021,
    arXiv:2106.15023.

    The first search starts at the image, later ones at random points of the ball; every second one aims at one wrong
    class, the likeliest first. Where a flagged image is not rejected but corrected, each search has a counterpart that
    seeks to be flagged, and misleads the corrector: the margin is then that of `correction(logits)`, which gives the
    corrector's scores for the net's logits, and the penalty relu(slack - excess). A model without `correction` is
    attacked through its attack view there. Of a stochastic model gradients are averaged over draws.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        method: "weighted" or "alternate".
        steps: Gradient steps of a search.
        searches: Number of starts for an unbroken example.
        slack: Distance that the excess must keep from the threshold, in the detector's units.
        confidence: Margin in logits beyond which climbing brings nothing.
        weight: Weight of the excess in the first search; "alternate" has none.
        look: A stochastic model judges (20 forwards) the likely successes after this number of steps, and all examples
            at the end of a search; a deterministic one judges them at each step.

    Raises:
        ValueError: An argument out of range, unknown norm or method; at the call: a model without `detection`.
    """

    name: ClassVar[str] = "joint"
    adaptive_only: ClassVar[bool] = True
    method: str = "weighted"
    steps: int = 30
    searches: int = 10
    slack: float = 0.2
    confidence: float = 1.0
    weight: float = 1.0
    look: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.method, "method", METHODS)
        check_counts(self, "steps", "searches", "look")
        check_not_negative(self.slack, "slack")
        check_not_negative(self.confidence, "confidence")
        check_positive(self.weight, "weight")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        model, best = unwrapped(victim.model), Best(x)
        if not callable(getattr(model, "detection", None)):
            raise ValueError(_NO_DETECTION.format(name=type(model).__name__))
        sides = [_Side(model, _unflagged)] if can_reject(model) else [_Side(model, _unflagged), _flagged_side(model)]
        weights = [_Weights(x.new_full((len(x),), self.weight)) for _ in sides]
        net = Criterion(criterion.label, criterion.target)  # of the net behind the detector, which rejects nothing
        ball, at = Ball(x, eps, self.norm), all_positions(x)
        images = _AscentState(at, rows, criterion, x, ball, net, draws, net, weights[0].now)
        with ExitStack() as stack:
            # The outer victim keeps the generators: if these kept them too, every batch would get the same noise.
            seen = [stack.enter_context(Victim(s, x, keep_generators=False, draws=draws_of(model))) for s in sides]
            likeliest = rivals(net, seen[0].logits(x)[:, :-1])
            for number in track(range(self.searches)):
                for side, weight in track(zip(seen, weights, strict=True)):
                    left = best.unbroken
                    if not len(left):
                        break
                    state = images.select(left)
                    if number % 2 and criterion.target is None:
                        state.aim = state.aim.targeting(likeliest[left, number // 2 % likeliest.shape[1]])
                    if number:
                        state.z = state.ball.random_point(state.draws.fork(number))
                    state.weight = weight.now[left]
                    weight.update(left, self._climb(victim, best, side, state)[left])
            for side in seen:
                victim.passes.add(side.passes, rows)
        return best.points

    def _climb(self, victim: Victim, best: Best, side: Victim, state: _AscentState) -> Tensor:
        """Run one search along the gradients of `side`. Return (B,) bool, where the net was fooled when it ended."""
        fooled = torch.zeros_like(best.success)
        state.velocity = torch.zeros_like(state.z)
        every = self.look if victim.is_stochastic else check_every(state.z)
        for step in track(range(self.steps)):
            seen, _, state.gradient = side.gradient(state.z, self._loss_of(state), state.at)
            fooled[state.at] = state.aim.margin(seen[:, :-1]) > 0
            # Also where either is NaN: the model may name no class there.
            likely = ~(state.net.margin(seen[:, :-1]) <= 0) & ~(seen[:, -1] >= 0)
            if step % every == 0 and bool(likely.any()):
                best.judge(victim, state.select(likely))
                if not state.keep(~best.success[state.at]):
                    return fooled
            state.advance(_FIRST_STEP * (1 - step / self.steps), DECAY)
        best.judge(victim, state)
        return fooled

    def _loss_of(self, state: _AscentState) -> Callable[[Tensor], Tensor]:
        """Return what is climbed: from the logits and the excess (b, K + 1) to (b,)."""
        aim, weight = state.aim, state.weight

        def loss(seen: Tensor) -> Tensor:
            margin, obstacle = aim.margin(seen[:, :-1]), seen[:, -1] + self.slack
            if self.method == "alternate":
                return torch.where(margin < self.confidence, margin, -obstacle)
            return margin.clamp(max=self.confidence) - weight * obstacle.relu()

        return loss


@dataclass
class _AscentState(AscentState):
    """The examples of a search, with the criterion for the net behind the detector and the weights (b,)."""

    net: Criterion
    weight: Tensor


@dataclass
class _Weights:
    """The weight of the excess (B,), between one that was too small and one that was too large."""

    now: Tensor

    def __post_init__(self) -> None:
        self.low, self.high = torch.zeros_like(self.now), torch.full_like(self.now, math.inf)

    def update(self, at: Tensor, fooled: Tensor) -> None:
        """Raise the weights at positions `at` (k,) where the net was `fooled` (and the image flagged); lower others."""
        now = self.now[at]
        low = torch.where(fooled, now, self.low[at])
        high = torch.where(fooled, self.high[at], now)
        middle = torch.where(high.isinf(), now * _FACTOR, torch.where(low == 0, now / _FACTOR, (low * high).sqrt()))
        self.low[at], self.high[at], self.now[at] = low, high, middle


class _Side(nn.Module):
    """The logits (B, K) of a net, and a last column that must be below 0 for its class to count."""

    def __init__(self, net: nn.Module, see: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.net, self.see = net, see

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.see(self.net, x), 1)


def _flagged_side(model: nn.Module) -> _Side:
    """Return the corrector's scores; where a defense does not show it, its attack view, without an obstacle."""
    shown = callable(getattr(model, "correction", None))
    return _Side(model, _flagged) if shown else _Side(attack_view(model), _whole)


def _flagged(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    logits, excess = _unflagged(model, x)
    return model.correction(logits), -excess  # type: ignore[operator]


def _whole(view: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    logits = view(x)
    return logits, torch.full_like(logits[:, :1], -_FAR)


def _unflagged(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (B, K) and the excess (B, 1) of a model that has `detection`."""
    found = model.detection(x)  # type: ignore[operator]
    shapes = [tuple(part.shape) for part in found if isinstance(part, Tensor)] if isinstance(found, tuple) else []
    if len(shapes) != 2 or len(shapes[0]) != 2 or shapes[0][0] != len(x) or shapes[1] != (len(x),):
        got = f"shapes {shapes}" if shapes else type(found).__name__
        raise ValueError(_BAD_DETECTION.format(name=type(model).__name__, batch=len(x), found=got))
    logits, excess = found
    return logits, excess.unsqueeze(1).to(logits)
