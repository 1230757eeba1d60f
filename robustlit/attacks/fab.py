"""FAB: steps onto the linearised boundary, drawn back towards the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import Active, all_positions, rivals
from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Nearest
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.checks import check_counts, check_share, is_number
from robustlit.threat import Ball, check_eps, expand

_NEWTON = 12  # Newton steps of a projection
_FINAL = 8  # forwards at the end of a run, of the search between the image and the adversarial example


@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary: a near adversarial example in L-inf or L2, without a step size to tune.

    Croce, Hein: Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020, arXiv:1907.02044.
    Each step takes the nearest linearised boundary, projects the point and the image on it within the box, and goes to
    a mixture of the two; after a success it goes back towards the image.

    Args:
        norm: "linf" or "l2".
        steps: Steps of each run; each costs a backward for each candidate, or one with a target.
        restarts: Runs; the first starts at the image, the others at random points at most half as far as the nearest
            adversarial example.
        candidates: Number of classes considered, those of highest logit on the clean image.
        alpha_max: Largest share of the image's projection in a step, in [0, 1].
        eta: Overshoot, at least 1.
        beta: Share of the way that is left after going back from a success, in (0, 1).
        eps: Radius of the random starts of an image without adversarial example, in pixel units.

    Raises:
        ValueError: A hyper-parameter out of range, unknown norm.
    """

    name: ClassVar[str] = "fab"
    steps: int = 100
    restarts: int = 1
    candidates: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    eps: float = 0.3

    @property
    def expected_passes(self) -> float:
        return 3 * self.steps * self.restarts

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "steps", "restarts", "candidates")
        for name, low, high in (("alpha_max", 0, 1), ("eta", 1, 2)):
            value = getattr(self, name)
            if not is_number(value) or not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")
        check_share(self.beta, "beta")
        check_eps(self.eps, self.norm)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        found, classes = Nearest(x, self.norm), None
        if criterion.target is None:
            classes = rivals(criterion, victim.logits(x, rows))[:, : self.candidates]
        images = _Images(all_positions(x), rows, criterion, x, x, classes)
        for run in track(range(self.restarts)):
            mine, walkers = Nearest(x, self.norm), replace(images)
            if run:
                near = torch.where(found.distances.isinf(), self.eps, found.distances)
                walkers.z = Ball(x, near / 2, self.norm).random_point(draws)
            self._walk(victim, walkers, mine)
            low, high = torch.zeros_like(mine.distances), torch.ones_like(mine.distances)
            end, success = mine.points.clone(), mine.found
            for _ in range(_FINAL):
                middle = (low + high) / 2
                reached = _judge(victim, replace(images, z=x + expand(middle, x) * (end - x)), mine)
                low, high = torch.where(reached, low, middle), torch.where(reached & success, middle, high)
            found.record(mine.points, mine.found, mine.margins)
        return found.points

    def toward(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, eps: Tensor, aim: Tensor | None,
        start: Tensor | None = None,
    ) -> Nearest:  # fmt: skip
        """Run once towards one class; an example stops as soon as it is broken within its budget.

        As in AutoAttack's FAB-T, a step linearises the lead of that class, but a success is any wrong class.

        Args:
            victim: The model.
            x: Images (b, ...), `rows` (b,) of the victim's batch.
            criterion: What counts as success.
            rows: (b,).
            eps: Budgets (b,) in pixel units; 0 takes every step.
            aim: Class of each example (b,); None is the criterion's target.
            start: First points (b, ...); None starts at the images.

        Returns:
            The nearest adversarial examples, also where they are outside the budget.
        """
        found, classes = Nearest(x, self.norm), None if aim is None else aim.unsqueeze(1)
        first = x if start is None else start
        self._walk(victim, _Images(all_positions(x), rows, criterion, first, x, classes), found, eps)
        return found

    def _walk(self, victim: Victim, images: _Images, found: Nearest, eps: Tensor | None = None) -> None:
        """Take the steps of a run from `images.z`; with budgets (B,) an example stops once it is broken within its."""
        for _ in track(range(self.steps)):
            _, values, gradients = victim.jacobian(images.z, images.leads, images.rows)
            z, x = self._step(images.z, images.x, values, gradients.flatten(2)), images.x
            images.z = z
            images.z = torch.where(expand(_judge(victim, images, found), z), x + self.beta * (z - x), z)
            if eps is not None and not images.keep(found.distances[images.at] > eps[images.at]):
                return

    def _step(self, z: Tensor, x: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        """Return the mixture of the projections of points `z` and images `x` (b, ...) on the nearest boundary.

        `values` (b, k) are the leads of the classes at `z`, negative before a boundary, `gradients` (b, k, D) theirs.
        """
        order = math.inf if self.norm == "linf" else 2
        slope = torch.linalg.vector_norm(gradients, 1 if self.norm == "linf" else 2, dim=2)  # the dual norm
        which = torch.where(slope > 0, values.abs() / slope, math.inf).nan_to_num(nan=math.inf).argmin(1)
        row = torch.arange(len(x), device=x.device)
        w, value = gradients[row, which], values[row, which].nan_to_num(nan=0.0)
        here, clean = z.flatten(1), x.flatten(1)
        level = (w * here).sum(1) - value  # the boundary: w . u = level
        d_here, d_clean = (project_on_plane(points, w, level, self.norm) for points in (here, clean))
        far_here, far_clean = (torch.linalg.vector_norm(d, order, dim=1) for d in (d_here, d_clean))
        share = (far_here / (far_here + far_clean).clamp_min(1e-12)).clamp(max=self.alpha_max).unsqueeze(1)
        mixed = (1 - share) * (here + self.eta * d_here) + share * (clean + self.eta * d_clean)
        return mixed.clamp(0, 1).view_as(x).to(x)  # logits may be wider than images


@dataclass
class _Images(Active):
    """The examples of a run with their images `x`, and the classes (b, k) whose boundaries count (None: the target)."""

    x: Tensor
    classes: Tensor | None

    def leads(self, logits: Tensor) -> Tensor:
        """Return the leads (b, k) of the classes, positive beyond a boundary."""
        if self.classes is None:
            return self.criterion.margin(logits).unsqueeze(1)
        return logits.gather(1, self.classes) - self.criterion.reference_logit(logits).unsqueeze(1)


def _judge(victim: Victim, images: _Images, found: Nearest) -> Tensor:
    """Record the current points in `found`; return (b,) bool, which of them succeed."""
    logits = victim.logits(images.z, images.rows)
    reached = images.criterion.reached(logits)
    found.record(images.z, reached, images.criterion.margin(logits), images.at)
    return reached


def project_on_plane(points: Tensor, w: Tensor, level: Tensor, norm: str) -> Tensor:
    """Return the least change, in `norm`, that brings each point onto the plane w . u = level within the box [0, 1].

    Where the plane does not meet the box: the change to the corner nearest to it.

    Args:
        points: (B, D) in [0, 1].
        w: Normals (B, D). Zero moves nothing.
        level: (B,).
        norm: "linf" or "l2".
    """
    # The optimum moves each pixel towards its border of the box until t is its limit, and w . u rises by its rate for
    # each unit of t. The sum is concave in t and made of straight pieces, so Newton from below never passes the root
    # and ends on it.
    gap = level - (w * points).sum(1)
    largest = w.abs().amax(1).clamp_min(torch.finfo(w.dtype).tiny)
    up = w * (gap.sign() / largest).unsqueeze(1)
    need, weight = gap.abs() / largest, up.abs()
    room = torch.where(up > 0, 1 - points, points)
    if norm == "linf":
        rate, limit = weight, room.masked_fill(weight == 0, 0)
    else:
        rate, limit = weight.square(), (room / weight).nan_to_num_(nan=0.0)  # where w is 0, nothing moves
    ways = torch.stack([rate, rate * limit.masked_fill(rate == 0, 0)], 1)  # (B, 2, D)
    whole = ways[:, 1].sum(1)  # the rise with every pixel at its border
    t, free = torch.zeros_like(need), torch.empty_like(rate)
    for _ in range(_NEWTON):
        torch.gt(limit, t.unsqueeze(1), out=free)
        slope, left = torch.bmm(ways, free.unsqueeze(2)).squeeze(2).unbind(1)
        # No slope: every pixel is at its border.
        ahead = torch.where(slope > 0, (need - (whole - left)) / slope, t)
        ahead = torch.maximum(ahead, t)
        if not points.is_cuda and torch.equal(ahead, t):
            break
        t = ahead
    moved = torch.minimum(limit, t.unsqueeze(1)) * (up.sign() if norm == "linf" else up)
    return (points + moved).clamp(0, 1) - points
