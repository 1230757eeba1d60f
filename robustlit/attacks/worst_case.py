"""WorstCase: a plan of gradient ascents and random searches, for the accuracy to quote."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import all_positions, rivals
from robustlit.attacks.ascent import Ascent, AscentState, run_ascent
from robustlit.attacks.attack import BudgetAttack
from robustlit.attacks.best import Best, Nearest
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion, full_precision, spread
from robustlit.attacks.nearest_l2 import NearestL2, refine, short_fab
from robustlit.attacks.plan import (
    PLANS,
    RIVALS,
    SHRUNK,
    Attempt,
    BoundaryWalk,
    Look,
    NearestSearch,
    Outside,
    Part,
    Patches,
    expected_passes,
    passes_left,
)
from robustlit.attacks.progress import track
from robustlit.attacks.square import Square
from robustlit.attacks.starts import far_from, in_ball
from robustlit.attacks.victim import NoGradientError, Victim
from robustlit.checks import check_count, is_number
from robustlit.threat import Ball, expand

_BLIND = (
    "WorstCase goes on by random search alone, which leaves many examples that gradients would break: the accuracy is "
    "an upper bound that may be far too high. {error}"
)
# These numbers and the plan were chosen by what they break and cost beside AutoAttack on nets for MNIST, Fashion-MNIST
# and CIFAR-10 (docs/attacks.md has the table), by
#     python benchmarks/attacks.py --attacks worst-case,worst-case-l2 --model MODULE:NET --data MODULE:IMAGES --eps EPS
DECAY = 0.75  # share of the velocity that a step keeps in L-inf; in L2 climbs end higher without
_FIRST_STEP = {"linf": 0.6, "l2": 2.0}  # length of the first step as a multiple of eps; the length falls linearly to 0
_AT_ONCE = 3  # gradients held for an example at once
_LOSS = {"ce": Criterion.log_odds, "margin": Criterion.margin, "dlr": Criterion.dlr}
# Logits count as shrunk where their spread at the best point is below this share of their spread at the image:
#     python benchmarks/shrunk_logits.py
_SHRUNK = 0.45


_GATES_MISS = (
    "worst_case spends fewer passes on examples that seem out of reach; of {dropped} such examples that got all passes "
    "as a control group, {missed} were broken late: the accuracy may be overstated by that share of the unbroken; "
    "WorstCase(control=1) spends all passes on all examples"
)


@dataclass(frozen=True)
class WorstCase(BudgetAttack):
    """As strong as AutoAttack at a fraction of its passes: diverse starts, gradients, rivals, and random search.

    Ascents on a robust net end in local maxima, so the starts decide: random points, the bright and the dark end of the
    ball, blocks, columns and rows of either, the image itself. From each, ascent of the log odds or of the margin
    (Carlini and Wagner 2017, arXiv:1608.04644), in L-inf with momentum (Dong 2018, arXiv:1710.06081), at any wrong
    class or at one of those whose linearised boundaries are nearest (as in DeepFool, arXiv:1511.04599); between them
    Square (arXiv:1912.00049), which needs no gradients, so that a defense cannot hide them, and in L2 walks of FAB
    (arXiv:1907.02044) from noise far outside the ball, refined by DDN (arXiv:1811.09600), and `NearestL2`. How far the
    nearest boundary lies outside an example's ball decides how much more effort the example is given. A random control
    group gets all of it: where that breaks some that were thought out of reach, a warning says how many. Measured
    against AutoAttack (Croce, Hein 2020, arXiv:2003.01690) by `benchmarks/attacks.py`.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        rounds: How often the plan is gone through, for the unbroken examples, with other random numbers; in L2 again
            without `NearestL2`, and with the walks that started at the image from noise.
        control: Share of the examples, drawn at random, that get the whole plan whatever their distance; 1 for all.
        version: Version of the plan, 5 or 6, to be quoted with a figure: "WorstCase v6". Version 6 adds ascents of DLR
            where all logits of an example become smaller under attack.

    Raises:
        ValueError: eps, rounds or control out of range, unknown norm, another version.
    """

    name: ClassVar[str] = "worst_case"
    goes_on_blind: ClassVar[bool] = True
    rounds: int = 1
    control: float = 0.05
    version: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.rounds, "rounds")
        if not is_number(self.control) or not 0 <= self.control <= 1:
            raise ValueError(f"control must be a share in [0, 1], got {self.control!r}")
        if self.version not in (5, 6):
            raise ValueError(
                f"version must be 5 or 6, the plans of this release, got {self.version!r}: to repeat a figure of "
                "another version, install the release that made it"
            )

    @property
    def expected_passes(self) -> float:
        return sum(expected_passes(self._plan))

    @property
    def _plan(self) -> tuple[Part, ...]:
        plan = PLANS[self.norm]
        # A second search for the nearest examples would find the same ones.
        return plan + tuple(part for part in plan if not isinstance(part, NearestSearch)) * (self.rounds - 1)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        best, logits = Best(x), victim.judge(x, rows)[1]
        clean = criterion.margin(logits).to(x.dtype)
        images = _Images(all_positions(x), rows, criterion, x, Ball(x, eps, self.norm), criterion, draws, clean)
        best.scores = clean.clone()
        in_control = draws.fork(-1).uniform(eps.unsqueeze(1)).squeeze(1) < self.control
        dropped = missed = torch.zeros_like(in_control)
        blind = False  # the model gives no gradient
        plan = self._plan
        passes = expected_passes(plan)
        for number, part in enumerate(track(plan, passes)):
            if blind and not isinstance(part, Patches):
                continue
            if not len(best.unbroken):
                break
            if isinstance(part, Look):
                images.look(victim, best, x if part.at_image else best.points)
                if part.at_image:
                    images.rivals_of_image = images.rivals
                after = number + 1
                passes[after:] = passes_left(plan[after:], ~best.success, images.missing, in_control)
                continue
            far, exempt = images.missing > part.within, in_control & (part.within > 0)
            near = torch.nonzero(~best.success & (~far | exempt)).squeeze(1)
            if not len(near) or (isinstance(part, Patches) and x.ndim != 4):  # patches need images
                continue
            before = best.success.clone()
            try:
                self._attempt(victim, best, images, near, part, number)
            except NoGradientError as error:
                if x.ndim != 4:  # nothing would be left
                    raise
                blind = True
                warnings.warn(_BLIND.format(error=error), stacklevel=2)
                continue
            dropped, missed = dropped | (far & exempt & ~before), missed | (far & best.success & ~before)
        if self.version > 5 and not blind and criterion.classes(logits) > 2:  # of two classes, DLR is the margin
            self._attack_shrunk(victim, best, images, logits)
        if self.control < 1 and bool(missed.any()):
            warnings.warn(_GATES_MISS.format(dropped=int(dropped.sum()), missed=int(missed.sum())), stacklevel=4)
        return best.points

    def _attack_shrunk(self, victim: Victim, best: Best, images: _Images, logits: Tensor) -> None:
        """Ascend DLR, which is free of scale, for the unbroken examples whose logits became smaller under attack.

        Args:
            logits: (B, K), those of the clean images.
        """
        left = best.unbroken
        if len(left):
            now = spread(victim.judge(best.points[left], images.rows[left])[1])
            left = left[now < _SHRUNK * spread(logits)[left]]
        for number, part in enumerate(SHRUNK, len(self._plan)):
            left = left[~best.success[left]]
            if not len(left):
                break
            self._attempt(victim, best, images, left, part, number)

    def _attempt(
        self, victim: Victim, best: Best, images: _Images, at: Tensor, part: Attempt, number: int
    ) -> None:  # fmt: skip
        """Give the examples `at` part `number` of the plan."""
        near = images.select(at)
        near.draws = near.draws.fork(number)
        if isinstance(part, Outside):
            if isinstance(part, BoundaryWalk):  # after the first round from elsewhere than the image
                again = part.start == "image" and number >= len(PLANS[self.norm])
                near.z = far_from(near.ball.x, "noise" if again else part.start, near.draws)
            found = self._from_outside(victim, near, part, images.nearest.select(at))
            images.nearest.record(found.points, found.found, found.margins, at)
            inside = found.distances <= near.ball.eps
            near.z = torch.where(expand(inside, near.z), found.points, near.ball.x)
            best.judge(victim, near)
            images.missing[at] = torch.minimum(images.missing[at], images.outside[at])
            return
        if isinstance(part, Patches):
            square = Square(eps=self.eps, norm=self.norm, queries=part.queries, patch=part.patch)
            start = None if part.afresh else best.points[near.at]
            points, margins, success = square.walk(victim, near.ball, near.criterion, near.rows, near.draws, start)
            best.record(near.at, points, success, margins)
            return
        if part.rival is not None and near.criterion.target is None:
            near.aim = near.criterion.targeting(_nth(near.rivals, part.rival))
        near.z = in_ball(part.start, near.ball, near.draws)
        lengths = [_FIRST_STEP[self.norm] * (1 - step / part.steps) for step in range(part.steps)]
        decay = DECAY if self.norm == "linf" else None
        run_ascent(victim, best, near, Ascent(lengths, decay, _LOSS[part.loss], Criterion.margin))
        best.judge(victim, near)

    def _from_outside(self, victim: Victim, near: _Images, part: Outside, nearest: Nearest) -> Nearest:
        """Return the nearest adversarial examples that a search finds; `nearest` are those of the parts before."""
        x, eps = near.ball.x, near.ball.eps
        if isinstance(part, NearestSearch):
            return NearestL2().nearest(victim, x, near.criterion, near.rows, near.draws)
        if isinstance(part, BoundaryWalk):
            aim = None if near.criterion.target is not None else _nth(near.rivals_of_image, part.rival)
            nearest = short_fab(part.steps).toward(victim, x, near.criterion, near.rows, eps, aim, near.z)
        reach = eps * (1 + min(part.within, 1.0))  # the others will hardly end in the ball
        at = torch.nonzero((nearest.distances > eps) & (nearest.distances <= reach)).squeeze(1)
        if len(at):
            some = nearest.select(at)
            refine(victim, some, near.criterion.select(at), near.rows[at], near.draws.select(at), part.refine)
            nearest.record(some.points, some.found, some.margins, at)
        return nearest


@dataclass
class _Images(AscentState):
    """The examples of a batch, with what is known of the boundaries around their best points."""

    clean: Tensor  # (b,) margins of the images

    def __post_init__(self) -> None:
        super().__post_init__()
        self.nearest = Nearest(self.ball.x, self.ball.norm)  # found by the parts that leave the ball
        self.missing = torch.zeros_like(self.ball.eps)  # from the ball to the nearest boundary, as a multiple of eps
        self.rivals = torch.zeros_like(self.at).unsqueeze(1)  # (b, k) wrong classes, that of the nearest boundary first
        self.rivals_of_image = self.rivals  # the same, as seen from the images

    @property
    def outside(self) -> Tensor:
        """(B,) from the ball to the nearest adversarial example, as a multiple of eps; of the whole batch only."""
        return (self.nearest.distances / self.ball.eps - 1).clamp_min(0)

    def look(self, victim: Victim, best: Best, points: Tensor) -> None:
        """Linearise the model at the points (B, ...) of the unbroken examples: set `missing` and `rivals`.

        As in DeepFool, a class is |f| / |w| away, where f is its logit less that of the true class and w the gradient
        of f, in the dual norm. Where the margin rose faster on the way from the image, its rise so far counts instead:
        a defense may hide gradients. Where no gradient is left, nothing is known, and nothing is missing.
        """
        unbroken = best.unbroken
        near, z = self.select(unbroken), points[unbroken]
        classes = rivals(near.criterion, victim.judge(z, near.rows)[1])[:, :RIVALS]  # (u, k)
        if near.criterion.target is not None:
            classes = classes[:, :1]
        distances = []
        for some in classes.split(_AT_ONCE, 1):

            def leads(logits: Tensor, some: Tensor = some, criterion: Criterion = near.criterion) -> Tensor:
                if criterion.target is not None:
                    return criterion.margin(logits).unsqueeze(1)
                logits = full_precision(logits)
                return logits.gather(1, some) - criterion.reference_logit(logits).unsqueeze(1)

            _, gaps, gradients = victim.jacobian(z, leads, near.rows)
            slopes = torch.linalg.vector_norm(gradients.flatten(2), 1 if self.ball.norm == "linf" else 2, dim=2)
            away = gaps.to(slopes.dtype).clamp(max=0).abs() / slopes
            distances.append(away.masked_fill(slopes == 0, math.inf))
        away, order = torch.cat(distances, 1).nan_to_num(nan=math.inf, posinf=math.inf).sort(1)
        ahead = torch.where(away[:, 0].isinf(), 0.0, away[:, 0]) / near.ball.eps
        rise = best.scores[unbroken] - near.clean
        so_far = torch.where(rise > 0, -best.scores[unbroken] / rise, math.inf)
        self.missing[unbroken] = torch.minimum(torch.minimum(ahead, so_far), self.outside[unbroken])
        self.rivals = self.rivals.expand(-1, classes.shape[1]).clone()
        self.rivals[unbroken] = classes.gather(1, order)


def _nth(classes: Tensor, number: int) -> Tensor:
    """Return class number `number` (b,) of those in each row of `classes` (b, k), the last if there are fewer."""
    return classes[:, min(number, classes.shape[1] - 1)]
