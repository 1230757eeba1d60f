"""DeepFool: steps to the nearest boundary of the linearised model, until one is crossed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import Active, all_positions
from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion, full_precision
from robustlit.attacks.progress import track
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count, check_not_negative
from robustlit.threat import distance, expand

_FIRST, _BLOCK = 4, 9  # classes differentiated at first, and in each later block where those do not decide
_SAFETY = 1.5  # a class is skipped where it is farther than the nearest by this factor, by the last known slopes
_FEW = 3  # classes differentiated at a step where more than one is near
_FLOOR = 1e-4  # pixel units added to a step, as in the authors' code: from a tie the plain step has no length
_CLOSE = 0.1  # a step shorter than this share of the way so far is the last stretch, and lengthens the whole way
_PATIENCE = 8  # steps after which pixels that can still move make up for those at the border of the box
_FARTHEST = 1e6  # longest step in pixel units, where the gradient is next to zero
_TRIMS, _TRIMMED = 8, 0.01  # most points judged on the way back, which ends once the boundary is known to this share


@dataclass(frozen=True)
class DeepFool(Attack):
    """Minimal attack: linearises the model, steps over the nearest boundary, and repeats until the class has changed.

    Moosavi-Dezfooli, Fawzi, Frossard: DeepFool: a simple and accurate method to fool deep neural networks, 2016,
    arXiv:1511.04599, algorithm 2. Against class k, with f_k its logit less that of the true class (which is also the
    predicted one, as a misclassified example is not attacked) and w_k the gradient of f_k, the boundary is
    |f_k| / |w_k|_q away (q dual to the norm); the step towards the nearest is |f| / |w|_2^2 w in L2 and
    |f| / |w|_1 sign(w) in L-inf, times 1 + overshoot.

    Beyond the paper, and cheaper for it: a class is differentiated only where its |f| over the steepest known slope
    could make it the nearest (with a safety of 1.5), mostly 4 classes at the first step and 1 later; the last stretch
    lengthens the whole way by the overshoot, so that the attack does not creep towards the boundary; after 8 steps
    the pixels that can still move make up for those at the border of the box. And nearer: at the end the way from the
    image to the adversarial example is cut back to where it crosses the boundary.

    Args:
        steps: Largest number of steps.
        overshoot: Share by which a step is lengthened.
        candidates: Number of classes considered, those of highest logit, the true one included; None means all.
        norm: "l2" or "linf".

    Raises:
        ValueError: steps, overshoot or candidates out of range, unknown norm.
    """

    name: ClassVar[str] = "deepfool"
    targeted: ClassVar[bool] = False
    norm: str = field(default="l2", kw_only=True)
    steps: int = 50
    overshoot: float = 0.02
    candidates: int | None = 10

    @property
    def expected_passes(self) -> float:
        return self.steps * (1 + (self.candidates or 10))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        check_not_negative(self.overshoot, "overshoot", "; the paper's is 0.02")
        if self.candidates is not None:
            check_count(self.candidates, "candidates")
            if self.candidates < 2:
                raise ValueError("candidates must be at least 2, got 1: the true class is one of them; None means all")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        best = Best(x)
        images = _Images(all_positions(x), rows, criterion, x, x, victim.logits(x, rows))
        active = replace(images)
        for step in track(range(self.steps)):
            near = self._linearise_first(victim, active) if step == 0 else self._linearise(victim, active)
            active.z = self._move(active.x, active.z, near, step)
            active.logits = victim.logits(active.z, active.rows)
            margin = active.criterion.margin(active.logits).to(x.dtype)
            reached = active.criterion.reached(active.logits)
            best.record(active.at, active.z, reached, margin)
            if not active.keep(~reached):
                break
        if victim.is_stochastic or not bool(best.success.any()):  # next to the boundary it would lose other votes
            return best.points
        found = torch.nonzero(best.success).squeeze(1)
        best.points[found] = _trim(victim, images.select(found), best.points[found], best.scores[found])
        return best.points

    def _linearise_first(self, victim: Victim, images: _Images) -> _Boundary:
        """Return the nearest boundary: differentiate classes, highest logit first, until no other can be nearer.

        Sets the slope of each class (b, K): 0 for those that are no candidates, the steepest known for those skipped.
        """
        gaps = _gaps(images.logits, images.criterion)
        classes = images.criterion.classes(images.logits)
        candidates = classes if self.candidates is None else min(self.candidates, classes)
        order = images.criterion.other_logits(gaps).topk(candidates - 1, 1).indices
        near, found = self._boundaries(victim, images, order[:, :_FIRST])
        slopes = torch.zeros_like(order, dtype=images.z.dtype)
        slopes[:, :_FIRST] = found
        for begin in range(_FIRST, candidates - 1, _BLOCK):
            least = gaps.gather(1, order[:, begin : begin + 1]).abs().squeeze(1) / (_SAFETY * slopes.amax(1))
            more = torch.nonzero(least < near.distance).squeeze(1)
            if not len(more):
                break
            other, found = self._boundaries(victim, images.select(more), order[more, begin : begin + _BLOCK])
            slopes[more, begin : begin + _BLOCK] = found
            closer = other.distance < near.distance[more]
            near.put(more[closer], other, closer)
        slopes = torch.where(slopes == 0, slopes.amax(1, keepdim=True), slopes)
        images.slopes = torch.zeros_like(images.logits, dtype=images.z.dtype).scatter(1, order, slopes)
        return near

    def _linearise(self, victim: Victim, images: _Images) -> _Boundary:
        """Return the nearest boundary of the few classes that are near by the known slopes; update those slopes."""
        logits, slopes = images.logits, images.slopes
        estimates = (_gaps(logits, images.criterion).abs() / slopes).masked_fill(slopes == 0, math.inf)
        estimates, classes = estimates.topk(min(_FEW, images.criterion.classes(logits) - 1), largest=False)
        one = torch.ones_like(images.at) > 0
        alone = estimates[:, 1] > _SAFETY * estimates[:, 0] if classes.shape[1] > 1 else one
        near = _Boundary.like(images.z)
        for part, count in ((alone, 1), (~alone, classes.shape[1])):
            some = torch.nonzero(part).squeeze(1)
            if len(some):
                chosen = classes[some, :count]
                found, new = self._boundaries(victim, images.select(some), chosen)
                near.put(some, found, torch.ones_like(some) > 0)
                slopes[some] = slopes[some].scatter(1, chosen, new)
        return near

    def _boundaries(self, victim: Victim, images: _Images, classes: Tensor) -> tuple[_Boundary, Tensor]:
        """Linearise the model towards `classes` (b, k): return the nearest boundary, and the slope (b, k) of each."""
        criterion, dtype = images.criterion, images.z.dtype
        gap = lambda logits: _gaps(logits, criterion).gather(1, classes)  # noqa: E731
        _, gaps, gradients = victim.jacobian(images.z, gap, images.rows)
        slopes = torch.linalg.vector_norm(gradients.flatten(2), 2 if self.norm == "l2" else 1, dim=2)  # (b, k)
        slopes, gaps = slopes.clamp_min(torch.finfo(dtype).tiny), gaps.to(dtype)
        distances = gaps.abs() / slopes
        nearest, row = distances.argmin(1), all_positions(images.z)
        found = (part[row, nearest] for part in (distances, gaps, slopes, gradients))
        return _Boundary(*found), slopes

    def _move(self, start: Tensor, z: Tensor, near: _Boundary, step: int) -> Tensor:
        """Return the points (b, ...) beyond the boundary of the linearised model, by the overshoot."""
        length = (near.distance + _FLOOR).nan_to_num(0.0).clamp(max=_FARTHEST)
        if step < _PATIENCE:
            unit = near.gradient / expand(near.slope, z) if self.norm == "l2" else near.gradient.sign()
            move = unit * expand(length, z)
        else:
            move = self._move_in_box(z, near, length, 1 + (step - _PATIENCE) // 4)
        moved = z + move * (1 + self.overshoot)
        last_stretch = near.gap >= 0  # a defense that is not broken although its attack view is
        if step < _PATIENCE:  # not for ever: where the boundary is curved, lengthening may lead back into the class
            last_stretch |= length < _CLOSE * distance(z, start, self.norm)
        moved = torch.where(expand(last_stretch, z), moved + (z - start) * self.overshoot, moved)
        return moved.clamp_(0, 1)

    def _move_in_box(self, z: Tensor, near: _Boundary, length: Tensor, rounds: int) -> Tensor:
        """Return the least move inside the box that takes the linearised gap to 0, by Newton's method from below."""
        weight = near.gradient.abs().flatten(1)
        room = torch.where(near.gradient > 0, 1 - z, z).flatten(1)
        speed = weight if self.norm == "l2" else (weight > 0).to(z.dtype)  # of each pixel, as `time` passes
        gap = (length * near.slope).unsqueeze(1)
        time = torch.zeros_like(gap)
        for _ in range(min(rounds, 4)):
            gone = torch.minimum(time * speed, room)
            gain = (weight * speed * (time * speed < room)).sum(1, keepdim=True)  # of the pixels that can still move
            left = (gap - (weight * gone).sum(1, keepdim=True)).clamp_min_(0)
            tiny = torch.finfo(z.dtype).tiny
            time = time + (left / gain.clamp_min(tiny)).clamp_(max=1 / tiny / 1e3)
        return (torch.minimum(time * speed, room).view_as(z)) * near.gradient.sign()


@dataclass
class _Images(Active):
    """The images still under attack, with the clean ones `x`, and the logits (b, K) of the current points."""

    x: Tensor
    logits: Tensor

    def __post_init__(self) -> None:
        self.slopes = self.logits  # (b, K) last known norms of each gap's gradient


@dataclass
class _Boundary:
    """The nearest boundary of the linearised model: distance, gap, slope (b,), and the gap's gradient (b, ...)."""

    distance: Tensor
    gap: Tensor
    slope: Tensor
    gradient: Tensor

    @staticmethod
    def like(z: Tensor) -> _Boundary:
        """Return a boundary of uninitialised values for the examples `z` (b, ...)."""
        return _Boundary(z.new_empty(len(z)), z.new_empty(len(z)), z.new_empty(len(z)), torch.empty_like(z))

    def put(self, at: Tensor, other: _Boundary, which: Tensor) -> None:
        """Copy the rows of `other` in the mask `which` to the positions `at`."""
        for name, mine in vars(self).items():
            mine[at] = getattr(other, name)[which]


def _gaps(logits: Tensor, criterion: Criterion) -> Tensor:
    """Return (b, K): each logit less the one to beat."""
    logits = full_precision(logits)
    return logits - criterion.reference_logit(logits).unsqueeze(1)


def _trim(victim: Victim, images: _Images, x_adv: Tensor, last: Tensor) -> Tensor:
    """Return the adversarial examples nearest to the images on the way to `x_adv` (b, ...), whose margins are `last`.

    By regula falsi (Illinois) on the margin. Overwrites `last` (b,).
    """
    x = images.x
    first = images.criterion.margin(images.logits).to(x.dtype)
    far = torch.ones_like(first)  # share of the way that is known to be adversarial
    near, at = torch.zeros_like(far), all_positions(x)
    for _ in range(_TRIMS):
        low, high = near[at], far[at]
        width = high - low
        root = (low - width * first[at] / (last - first)[at]).nan_to_num(0.0)
        # Slightly beyond the root, so that the next point is adversarial; never at an end, so that the width falls.
        share = torch.minimum(torch.maximum(root + 0.02 * width, low + 0.1 * width), high - 0.02 * width)
        way, criterion = x[at], images.criterion.select(at)
        logits = victim.logits(way + expand(share, way) * (x_adv[at] - way), images.rows[at])
        margin = criterion.margin(logits).to(x.dtype)
        beyond = criterion.reached(logits)
        far[at], near[at] = torch.where(beyond, share, high), torch.where(beyond, low, share)
        # Illinois: the end that stays counts half, else it would stay for ever.
        last[at] = torch.where(beyond, margin, last[at] / 2)
        first[at] = torch.where(beyond, first[at] / 2, margin)
        at = at[torch.nonzero(far[at] - near[at] > _TRIMMED).squeeze(1)]
        if not len(at):
            break
    return x + expand(far, x) * (x_adv - x)
