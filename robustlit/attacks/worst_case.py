"""WorstCase: a plan of gradient ascents and random searches, for the accuracy to quote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlit.attacks.active import all_positions, rivals
from robustlit.attacks.ascent import Ascent, Climbers, climb
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.square import Square
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.threat import Ball

# These numbers, and those of the plan, are tuned on MNIST nets. The command that shows what they cost and break, beside
# AutoAttack, on 500 test digits:
#     python benchmarks/attacks.py --attacks worst-case --model runs/fgsm_rs --n 500 --rounds 1 --threads 1
DECAY = 0.75  # share of the velocity that a step keeps
_FIRST_STEP = 0.6  # length of the first step as a multiple of eps; the length falls linearly to 0


@dataclass(frozen=True)
class _Climb:
    """Momentum ascent from a pattern, for examples whose margin has fallen to `within` of the clean one."""

    start: str  # pattern, see `_start`
    steps: int
    within: float = float("inf")
    rival: int | None = None  # aim at the n-th likeliest wrong class instead of at any


@dataclass(frozen=True)
class _Patches:
    """Random search by square patches, for examples whose margin has fallen to `within` of the clean one."""

    queries: int
    patch: float  # share of the pixels that the first patches cover
    within: float = float("inf")
    afresh: bool = True  # start from stripes; False goes on from the best point


# The margin shows where passes pay: most examples are out of reach and stay so, and most of those that break at all
# have lost nine tenths of their margin long before. So every example is attacked cheaply from several sides, and the
# rest of the effort goes to those that are nearly broken.
_PLAN: tuple[_Climb | _Patches, ...] = (
    _Climb("uniform", 30),
    _Climb("bright", 30),
    _Patches(150, 0.3),
    _Climb("dark", 30, within=0.7),
    _Climb("blocks", 40, within=0.5),
    _Climb("columns", 40, within=0.5, rival=0),
    _Climb("image", 40, within=0.5, rival=1),
    _Climb("rows", 40, within=0.4),
    _Climb("corner", 40, within=0.4, rival=2),
    *(_Climb(start, 40, 0.25) for start in ("bright", "blocks", "columns", "dark", "rows", "corner")),
    _Patches(1000, 0.1, within=0.3, afresh=False),
    *(_Climb(start, 60, 0.12) for start in ("columns", "blocks", "corner", "rows", "bright", "uniform") * 2),
    _Patches(2500, 0.3, within=0.2),
)


@dataclass(frozen=True)
class WorstCase(BudgetAttack):
    """As strong as AutoAttack at a fraction of its passes: diverse starts, gradients, rivals, and random search.

    Ascents on a robust net end in local maxima, so the starts decide: random points, the bright and the dark end of the
    ball, blocks, columns and rows of either, the image itself. From each, momentum ascent of the margin
    (Dong 2018, arXiv:1710.06081; Carlini and Wagner 2017, arXiv:1608.04644), at any wrong class or at a rival; between
    them Square (arXiv:1912.00049), which needs no gradients, so that a defense cannot hide them. How far an
    example's margin has fallen, relative to its clean one, decides how much more effort it is given. Measured against
    AutoAttack (Croce, Hein 2020, arXiv:2003.01690) by `benchmarks/attacks.py`.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        rounds: Repetitions of the whole plan, with other random numbers, for the unbroken examples.

    Raises:
        ValueError: eps or rounds out of range, unknown norm.
    """

    name: ClassVar[str] = "worst_case"
    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.rounds, "rounds")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        logits, best = victim.logits(x, rows), Best(x)
        best.scores = criterion.margin(logits).nan_to_num(nan=-float("inf"))
        # Below 0 for every example: a tie, or a vote that is lost narrowly, is as near as an example can be.
        clean, likeliest = best.scores.clamp(max=-1e-12), rivals(criterion, logits)
        images = Climbers(all_positions(x), rows, criterion, x, Ball(x, eps, self.norm), criterion, draws)
        for number, part in enumerate(_PLAN * self.rounds):
            unbroken = best.unbroken
            near = unbroken[best.scores[unbroken] >= part.within * clean[unbroken]]
            if not len(near) or (isinstance(part, _Patches) and x.ndim != 4):  # patches need images
                continue
            climbers = images.select(near)
            climbers.draws = climbers.draws.fork(number)
            if isinstance(part, _Patches):
                self._search_patches(victim, best, climbers, part)
                continue
            if part.rival is not None and criterion.target is None:
                climbers.aim = criterion.select(near).toward(likeliest[near, min(part.rival, likeliest.shape[1] - 1)])
            climbers.z = _start(part.start, climbers.ball, climbers.draws)
            lengths = [_FIRST_STEP * (1 - step / part.steps) for step in range(part.steps)]
            climb(victim, best, climbers, Ascent(lengths, DECAY, Criterion.margin))
            best.judge(victim, climbers)
        return best.points

    def _search_patches(self, victim: Victim, best: Best, near: Climbers, part: _Patches) -> None:
        square = Square(eps=self.eps, norm=self.norm, queries=part.queries, patch=part.patch)
        start = None if part.afresh else best.points[near.at]
        points, margins, success = square.walk(victim, near.ball, near.criterion, near.rows, near.draws, start)
        best.record(near.at, points, success, margins)


def _start(pattern: str, ball: Ball, draws: Draws) -> Tensor:
    """Return a point at the surface of each ball, cut to the box, in one of the patterns of the plan."""
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
    return ball.surface(sign)
