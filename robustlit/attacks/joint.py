"""JointAttack: misleads the classifier and the detector that watches it, both at once."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.ascent import accelerate
from robustlit.attacks.attack import BudgetAttack, check_every
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.classifier import attack_view, can_reject, draws_of
from robustlit.threat import Ball

METHODS = ("weighted", "alternate")
_DECAY = 0.75  # of the velocity
_STEP = 0.5  # length of the first step as a share of eps; it falls linearly to 0
_FACTOR = 10.0  # by which the weight grows or shrinks until a search has erred on either side
_FAR = 1e6  # an excess that no penalty sees
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
    """Climbs margin - weight * relu(excess + slack), the weight found for each example by binary search.

    The margin is that of the net behind the detector, cut at `confidence`; the excess is the detector's score less its
    threshold. Carlini, Wagner: Adversarial examples are not easily detected, 2017, arXiv:1705.07263, put a detector
    into the loss so. The weight grows where a search fooled the net but was flagged, and shrinks where it did not fool
    it. `method="alternate"` has no weight: each step climbs the margin until it is `confidence`, and from there on
    lowers the excess, as the selective descent of Bryniarski, Hingun, Pachuca, Wang, Carlini: Evading adversarial
    example detection defenses with orthogonal projected gradient descent, 2021, arXiv:2106.15023.

    The first search starts at the image, later ones at random points of the ball; every second one aims at one wrong
    class, the likeliest first. Where a flagged image is not rejected but corrected, each search has a counterpart that
    wants to be flagged, and misleads the corrector: the margin is then that of `correction(logits)`, which gives the
    corrector's scores for the net's logits, and the penalty relu(slack - excess). A model without `correction` is
    attacked through its attack view there. Of a stochastic model gradients are averaged over draws.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        method: "weighted" or "alternate".
        steps: gradient steps of a search.
        searches: how often an unbroken example is started.
        slack: by how much the excess shall stay on its side of the threshold, in the detector's units.
        confidence: up to which margin, in logits, it pays to climb.
        weight: of the excess in the first search; "alternate" has none.
        look: a stochastic model judges (20 forwards) after so many steps whoever looks like a success, and at the end
            of a search everyone; a deterministic one whenever someone does.

    Raises:
        ValueError: an argument out of range, unknown norm or method; at the call: a model without `detection`.
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
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("steps", "searches", "look"):
            check_count(getattr(self, name), name)
        for name, least in (("slack", 0.0), ("confidence", 0.0), ("weight", None)):
            value = getattr(self, name)
            usable = not isinstance(value, bool) and math.isfinite(value) and (value >= 0 if least == 0 else value > 0)
            if not usable:
                rule = "at least 0" if least == 0 else "positive"
                raise ValueError(f"{name} must be finite and {rule}, got {value!r}")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        model, best = victim.model, Best(victim, x, criterion, rows)
        if not callable(getattr(model, "detection", None)):
            raise ValueError(_NO_DETECTION.format(name=type(model).__name__))
        ways = [_Unflagged(model)] if can_reject(model) else [_Unflagged(model), _flagged(model)]
        weights = [_Weights(x.new_full((len(x),), self.weight)) for _ in ways]
        aims = Criterion(criterion.label, criterion.target)  # of the net behind the detector, which rejects nothing
        with ExitStack() as stack:
            # The generators are the outer victim's to keep: kept here, every batch would get the same noise.
            seen = [stack.enter_context(Victim(w, x, keep_generators=False, draws=draws_of(model))) for w in ways]
            rivals = aims.others(seen[0].logits(x)[:, :-1]).argsort(1, descending=True)[:, :-1]  # likeliest first
            for number in range(self.searches):
                for way, weight in zip(seen, weights, strict=True):
                    left = best.standing
                    if not len(left):
                        break
                    ball, mine, aim = (
                        Ball(x[left], eps[left], self.norm),
                        draws.select(left).fork(number),
                        aims.select(left),
                    )
                    if number % 2 and criterion.target is None:
                        aim = aim.toward(rivals[left, number // 2 % rivals.shape[1]])
                    z = ball.x if number == 0 else ball.random_point(mine)
                    fooled = self._climb(best, way, ball, z, aim, weight.now[left], left)
                    weight.search_on(left, fooled)
            for way in seen:
                victim.forwards.index_add_(0, rows, way.forwards)
                victim.backwards.index_add_(0, rows, way.backwards)
        return best.points

    def _climb(
        self, best: Best, way: Victim, ball: Ball, z: Tensor, aim: Criterion, weight: Tensor, inside: Tensor
    ) -> Tensor:
        """One search from `z` for the examples `inside` (b,); says whom the net was fooled about when it ended, (b,).

        `way` gives logits (b, K), and in a last column what must be below 0.
        """
        fooled = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        number = torch.arange(len(z), device=z.device)  # the examples still in the batch, as positions in `fooled`
        velocity = torch.zeros_like(z)
        every = self.look if best.victim.is_stochastic else check_every(z)

        def loss(seen: Tensor) -> Tensor:
            margin, obstacle = aim.margin(seen[:, :-1]), seen[:, -1] + self.slack
            if self.method == "alternate":
                return torch.where(margin < self.confidence, margin, -obstacle)
            return margin.clamp(max=self.confidence) - weight * obstacle.relu()

        for step in range(self.steps):
            seen, _, gradient = way.gradient(z, loss, inside)
            fooled[number] = aim.margin(seen[:, :-1]) > 0
            if step % every == 0:
                hopeful = (best.criterion_of_net(inside).margin(seen[:, :-1]) > 0) & (seen[:, -1] < 0)
                won = torch.zeros_like(hopeful)
                if bool(hopeful.any()):
                    won[hopeful] = best.judge(z[hopeful], inside[hopeful])
                if bool(won.any()):
                    left = torch.nonzero(~won).squeeze(1)
                    if not len(left):
                        return fooled
                    inside, number, aim, weight, ball = (
                        inside[left], number[left], aim.select(left), weight[left], ball.select(left),
                    )  # fmt: skip
                    z, velocity, gradient = z[left], velocity[left], gradient[left]
            velocity = accelerate(velocity, gradient, _DECAY)
            z = ball.step(z, velocity.clone(), ball.eps * (_STEP * (1 - step / self.steps)))
        best.judge(z, inside)
        return fooled


@dataclass
class _Weights:
    """The weight of the excess for each example, between one that was too small and one that was too large: (b,)."""

    now: Tensor

    def __post_init__(self) -> None:
        self.low, self.high = torch.zeros_like(self.now), torch.full_like(self.now, math.inf)

    def search_on(self, which: Tensor, fooled: Tensor) -> None:
        """Heavier for those of `which` (k,) that were `fooled`, and so must have been flagged; lighter for others."""
        now = self.now[which]
        low = torch.where(fooled, now, self.low[which])
        high = torch.where(fooled, self.high[which], now)
        middle = torch.where(high.isinf(), now * _FACTOR, torch.where(low == 0, now / _FACTOR, (low * high).sqrt()))
        self.low[which], self.high[which], self.now[which] = low, high, middle


class _Unflagged(nn.Module):
    """The net's logits (B, K), and the excess in a last column: below 0 the net's word counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*_detection(self.model, x)], 1)


class _Flagged(nn.Module):
    """The corrector's scores (B, K), and the excess below its threshold: below 0 the corrector's word counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits, excess = _detection(self.model, x)
        return torch.cat([self.model.correction(logits), -excess], 1)  # type: ignore[operator]


class _Whole(nn.Module):
    """The attack view's logits (B, K), and nothing in the way: for a defense that does not show its corrector."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.view = attack_view(model)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.view(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -_FAR)], 1)


def _flagged(model: nn.Module) -> nn.Module:
    return _Flagged(model) if callable(getattr(model, "correction", None)) else _Whole(model)


def _detection(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K) and excess (B, 1) of a model that has `detection`."""
    found = model.detection(x)  # type: ignore[operator]
    shapes = [tuple(part.shape) for part in found if isinstance(part, Tensor)] if isinstance(found, tuple) else []
    if len(shapes) != 2 or len(shapes[0]) != 2 or shapes[0][0] != len(x) or shapes[1] != (len(x),):
        got = f"shapes {shapes}" if shapes else type(found).__name__
        raise ValueError(_BAD_DETECTION.format(name=type(model).__name__, batch=len(x), found=got))
    logits, excess = found
    return logits, excess.unsqueeze(1).to(logits)
