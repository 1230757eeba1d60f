"""WorstCase: the ensemble whose per-example worst case a verdict quotes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlit.attacks.ascent import climb
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.square import Square
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.threat import Ball, distance, expand

_DECAY = 0.75  # of the velocity
_STEP = 0.6  # length of the first step as a share of eps; it falls linearly to 0


@dataclass(frozen=True)
class _Climb:
    """Momentum ascent from a pattern, for the examples whose margin is down to `within` of the clean one."""

    start: str
    steps: int
    within: float = float("inf")
    rival: int | None = None  # aim at the n-th likeliest wrong class instead of at any


@dataclass(frozen=True)
class _Walk:
    """Random search by square patches: from stripes, or on from the best point."""

    queries: int
    patch: float
    within: float = float("inf")
    afresh: bool = True


# Where the margin stands tells where passes pay: most examples are out of reach and stay so, and of those that break
# at all most have lost nine tenths of their margin long before. So everyone is looked at from several sides, cheaply,
# and what is left of the effort goes to those who are nearly there.
_PLAN: tuple[_Climb | _Walk, ...] = (
    _Climb("uniform", 30),
    _Climb("bright", 30),
    _Walk(150, 0.3),
    _Climb("dark", 30, within=0.7),
    _Climb("blocks", 40, within=0.5),
    _Climb("columns", 40, within=0.5, rival=0),
    _Climb("image", 40, within=0.5, rival=1),
    _Climb("rows", 40, within=0.4),
    _Climb("corner", 40, within=0.4, rival=2),
    *(_Climb(start, 40, 0.25) for start in ("bright", "blocks", "columns", "dark", "rows", "corner")),
    _Walk(1000, 0.1, within=0.3, afresh=False),
    *(_Climb(start, 60, 0.12) for start in ("columns", "blocks", "corner", "rows", "bright", "uniform") * 2),
    _Walk(2500, 0.3, within=0.2),
)


@dataclass(frozen=True)
class WorstCase(BudgetAttack):
    """As strong as AutoAttack at a fraction of its passes: diverse starts, gradients, rivals, and random search.

    A robust net holds an attacker in local maxima, so the starts decide: random points, the bright and the dark end
    of the ball, blocks, columns and rows of either, the image itself. From each, momentum ascent of the margin
    (Dong 2018, arXiv:1710.06081; Carlini and Wagner 2017, arXiv:1608.04644), at any wrong class or at a rival; between
    them Square (arXiv:1912.00049), which needs no gradients and sees where a defense only hides them. How far an
    example's margin has fallen, relative to its clean one, decides how much more effort it is given. Measured against
    AutoAttack (Croce, Hein 2020, arXiv:2003.01690) by `benchmarks/attacks.py`.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        rounds: how often the whole plan is gone through, with other random numbers, for the examples that stand.

    Raises:
        ValueError: eps or rounds out of range, unknown norm.
    """

    name: ClassVar[str] = "ensemble"
    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.rounds, "rounds")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        logits = victim.logits(x, rows)
        margins = criterion.margin(logits).nan_to_num(nan=-float("inf"))  # (b,) the highest so far
        # Below 0 for every example: a tie, or a vote that is lost but not by enough, is as near as can be.
        clean = margins.clamp(max=-1e-12)
        best, rivals = x.clone(), _rivals(criterion, logits)
        unbroken = torch.arange(len(x), device=x.device)
        for number, part in enumerate(_PLAN * self.rounds):
            if isinstance(part, _Walk) and x.ndim != 4:
                continue  # patches need images
            near = unbroken[margins[unbroken] >= part.within * clean[unbroken]]
            if not len(near):
                continue
            ball, sought, mine = (
                Ball(x[near], eps[near], self.norm),
                criterion.select(near),
                draws.select(near).fork(number),
            )
            if isinstance(part, _Walk):
                walk = Square(eps=self.eps, norm=self.norm, queries=part.queries, patch=part.patch)
                start = None if part.afresh else best[near]
                points, found, won = walk.walk(victim, ball, sought, rows[near], mine, start)
            else:
                aim = sought
                if part.rival is not None and criterion.target is None:
                    aim = sought.toward(rivals[near, min(part.rival, rivals.shape[1] - 1)])
                lengths = [_STEP * (1 - step / part.steps) for step in range(part.steps)]
                points, found, won = climb(
                    victim, ball, _start(part.start, ball, mine), sought, rows[near],
                    steps=lengths, decay=_DECAY, aim=aim, loss="margin",
                )  # fmt: skip
            better = won | (found > margins[near])
            best[near[better]], margins[near[better]] = points[better], found[better].to(margins.dtype)
            standing = torch.ones(len(x), dtype=torch.bool, device=x.device)
            standing[near[won]] = False
            unbroken = unbroken[standing[unbroken]]
            if not len(unbroken):
                break
        return best


def _rivals(criterion: Criterion, logits: Tensor) -> Tensor:
    """The wrong classes (b, K - 1), likeliest first."""
    return criterion.others(logits).argsort(1, descending=True)[:, : criterion.classes(logits) - 1]


def _start(pattern: str, ball: Ball, draws: Draws) -> Tensor:
    """A point at the surface of each ball, cut to the box, in one of the patterns of the plan."""
    x = ball.x
    if pattern == "image":
        return x
    sign = torch.ones_like(x)
    if pattern == "uniform":
        sign = draws.uniform(x) * 2 - 1
    elif pattern == "dark":
        sign = -sign
    elif pattern != "bright":
        sides = list(x.shape[2:])
        coarse = {"corner": sides, "blocks": [max(side // 2, 1) for side in sides]}.get(pattern)
        if coarse is None:  # "columns" or "rows"
            across = pattern == "rows"
            coarse = [1 if number == across else side for number, side in enumerate(sides)]
        signs = draws.uniform(x.new_empty(*x.shape[:2], *coarse)).round() * 2 - 1
        sign = F.interpolate(signs, sides, mode="nearest") if len(sides) == 2 else signs.expand_as(x)
    return ball.project(x + sign * expand(ball.eps / distance(sign, torch.zeros_like(sign), ball.norm), x))
