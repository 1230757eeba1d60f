"""DeepFool: steps to the nearest boundary of the linearised model, until one is crossed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import Attack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.threat import distance, expand

_FIRST, _BLOCK = 4, 9  # classes differentiated in the first look, and in each later one where those do not settle it
_SAFETY = 1.5  # a class is passed over where it is farther than the nearest by this factor, by the slopes last known
_FEW = 3  # classes differentiated at a step where more than one is near
_FLOOR = 1e-4  # pixel units added to a step, as in the authors' code: from a tie the plain step has no length
_CLOSE = 0.1  # a step below this share of the way gone is the last stretch, and lengthens the whole way
_PATIENCE = 8  # steps after which what the box cuts off is made up for by the pixels that can still move
_FARTHEST = 1e6  # pixel units, where the gradient is next to zero
_TRIMS, _TRIMMED = 8, 0.01  # at most so many looks at the way back, done once the end is known to a hundredth of it


@dataclass(frozen=True)
class DeepFool(Attack):
    """Minimal attack: linearises the model, steps over the nearest boundary, and again until the class has changed.

    Moosavi-Dezfooli, Fawzi, Frossard: DeepFool: a simple and accurate method to fool deep neural networks, 2016,
    arXiv:1511.04599, algorithm 2. Against class k, with f_k its logit less that of the true class (predicted, or the
    example would have needed no attack) and w_k the gradient of f_k, the boundary is |f_k| / |w_k|_q away (q dual to
    the norm); the step towards the nearest is |f| / |w|_2^2 w in L2 and |f| / |w|_1 sign(w) in L-inf, times
    1 + overshoot.

    Beyond the paper, and cheaper for it: a class is differentiated only where its |f| over the steepest slope yet seen
    could make it the nearest (with a safety of 1.5), mostly 4 classes at the first step and 1 later; the last stretch
    lengthens the whole way by the overshoot, so that the attack does not creep towards the boundary; an attack that the
    box has held up for 8 steps lets the pixels that can still move make up for the others. And nearer: at the end the
    way from the image to the adversarial point is cut back to where it crosses the boundary. Looks each step who has
    finished, on a GPU too: that costs less than the backward passes it saves.

    Args:
        steps: at most so many.
        overshoot: share by which a step is lengthened.
        candidates: classes considered, those of highest logit, the true one included; None means all.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        if (
            isinstance(self.overshoot, bool)
            or not isinstance(self.overshoot, Real)
            or not math.isfinite(self.overshoot)
            or self.overshoot < 0
        ):
            raise ValueError(f"overshoot must be at least 0 and finite, got {self.overshoot!r}; the paper's is 0.02")
        if self.candidates is not None:
            check_count(self.candidates, "candidates")
            if self.candidates < 2:
                raise ValueError("candidates must be at least 2, got 1: the true class is one of them; None means all")

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        every, everyone = criterion, rows
        best, won = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        inside, start, z = torch.arange(len(x), device=x.device), x, x  # the examples still in the batch
        logits = victim.logits(z, rows)
        first = criterion.margin(logits).to(x.dtype)
        margins, slopes = torch.full_like(first, -math.inf), torch.empty(0)
        for step in range(self.steps):
            if step == 0:
                near, slopes = self._survey(victim, z, criterion, rows, logits)
            else:
                near = self._look_again(victim, z, criterion, rows, logits, slopes)
            z = self._move(start, z, near, step)
            logits = victim.logits(z, rows)
            margin = criterion.margin(logits).to(x.dtype)
            reached = criterion.reached(logits)
            if not victim.is_stochastic:  # whose votes are no margin
                reached &= margin > _rounding(logits)
            better = reached | (margin > margins[inside])
            best[inside] = torch.where(expand(better, z), z, best[inside])
            margins[inside] = torch.where(better, margin, margins[inside])
            won[inside] = reached
            left = torch.nonzero(~reached).squeeze(1)
            if not len(left):
                break
            if len(left) < len(inside):
                inside, rows, criterion, start, z, slopes, logits = (
                    inside[left], rows[left], criterion.select(left), start[left], z[left], slopes[left], logits[left],
                )  # fmt: skip
        if victim.is_stochastic:  # next to the boundary it would lose the recount
            return best
        left = torch.nonzero(won).squeeze(1)
        if len(left):
            best[left] = _trim(
                victim, x[left], best[left], every.select(left), everyone[left], first[left], margins[left]
            )
        return best

    def _survey(
        self, victim: Victim, z: Tensor, criterion: Criterion, rows: Tensor, logits: Tensor
    ) -> tuple[Nearest, Tensor]:
        """The first look: the classes of highest logit in turn, until no other can be nearer.

        Returns:
            The nearest boundary, and the slope of each class (b, K): 0 for those that are no candidates, the steepest
            seen for those passed over.
        """
        gaps = _gaps(logits, criterion)
        classes = criterion.classes(logits)
        candidates = classes if self.candidates is None else min(self.candidates, classes)
        order = criterion.others(gaps).topk(candidates - 1, 1).indices
        near, found = self._look(victim, z, criterion, rows, order[:, :_FIRST])
        slopes = torch.zeros_like(order, dtype=z.dtype)
        slopes[:, :_FIRST] = found
        for begin in range(_FIRST, candidates - 1, _BLOCK):
            least = gaps.gather(1, order[:, begin : begin + 1]).abs().squeeze(1) / (_SAFETY * slopes.amax(1))
            more = torch.nonzero(least < near.distance).squeeze(1)
            if not len(more):
                break
            other, found = self._look(
                victim, z[more], criterion.select(more), rows[more], order[more, begin : begin + _BLOCK]
            )
            slopes[more, begin : begin + _BLOCK] = found
            closer = other.distance < near.distance[more]
            near.put(more[closer], other, closer)
        slopes = torch.where(slopes == 0, slopes.amax(1, keepdim=True), slopes)
        return near, torch.zeros_like(logits, dtype=z.dtype).scatter(1, order, slopes)

    def _look_again(
        self, victim: Victim, z: Tensor, criterion: Criterion, rows: Tensor, logits: Tensor, slopes: Tensor
    ) -> Nearest:
        """The nearest boundary among the few that are near by the slopes known so far; brings those up to date."""
        estimates = (_gaps(logits, criterion).abs() / slopes).masked_fill(slopes == 0, math.inf)
        estimates, classes = estimates.topk(min(_FEW, criterion.classes(logits) - 1), largest=False)
        alone = estimates[:, 1] > _SAFETY * estimates[:, 0] if classes.shape[1] > 1 else torch.ones_like(rows) > 0
        near = Nearest.like(z)
        for part, count in ((alone, 1), (~alone, classes.shape[1])):
            some = torch.nonzero(part).squeeze(1)
            if len(some):
                chosen = classes[some, :count]
                found, new = self._look(victim, z[some], criterion.select(some), rows[some], chosen)
                near.put(some, found)
                slopes[some] = slopes[some].scatter(1, chosen, new)
        return near

    def _look(
        self, victim: Victim, z: Tensor, criterion: Criterion, rows: Tensor, classes: Tensor
    ) -> tuple[Nearest, Tensor]:
        """Linearises the model towards `classes` (b, k): the nearest boundary of them, and the slope (b, k) of each."""
        _, gaps, gradients = victim.jacobian(z, lambda logits: _gaps(logits, criterion).gather(1, classes), rows)
        dual = 2 if self.norm == "l2" else 1
        slopes = torch.linalg.vector_norm(gradients.flatten(2), dual, dim=2)  # (b, k)
        slopes = slopes.clamp_min(torch.finfo(z.dtype).tiny)
        gaps = gaps.to(z.dtype)
        distances = gaps.abs() / slopes
        nearest, row = distances.argmin(1), torch.arange(len(z), device=z.device)
        return Nearest(
            distances[row, nearest], gaps[row, nearest], slopes[row, nearest], gradients[row, nearest]
        ), slopes

    def _move(self, start: Tensor, z: Tensor, near: Nearest, step: int) -> Tensor:
        """Over the boundary of the linearised model, and by the overshoot farther."""
        length = (near.distance + _FLOOR).nan_to_num(0.0).clamp(max=_FARTHEST)
        if step < _PATIENCE:
            unit = near.gradient / expand(near.slope, z) if self.norm == "l2" else near.gradient.sign()
            move = unit * expand(length, z)
        else:
            move = self._move_in_box(z, near, length, 1 + (step - _PATIENCE) // 4)
        moved = z + move * (1 + self.overshoot)
        # The way so far may lead back into the class where the boundary is curved, so not for ever.
        last_stretch = near.gap >= 0  # of a defense that stands though its twin is beaten
        if step < _PATIENCE:
            last_stretch |= length < _CLOSE * distance(z, start, self.norm)
        moved = torch.where(expand(last_stretch, z), moved + (z - start) * self.overshoot, moved)
        return moved.clamp_(0, 1)

    def _move_in_box(self, z: Tensor, near: Nearest, length: Tensor, rounds: int) -> Tensor:
        """The least move inside the box that takes the linearised gap to 0, by Newton's method from below."""
        weight = near.gradient.abs().flatten(1)
        room = torch.where(near.gradient > 0, 1 - z, z).flatten(1)
        speed = weight if self.norm == "l2" else (weight > 0).to(z.dtype)  # how fast each pixel goes as `time` passes
        gap = (length * near.slope).unsqueeze(1)
        time = torch.zeros_like(gap)
        for _ in range(min(rounds, 4)):
            gone = torch.minimum(time * speed, room)
            gain = (weight * speed * (time * speed < room)).sum(1, keepdim=True)  # by those that can still move
            left = (gap - (weight * gone).sum(1, keepdim=True)).clamp_min_(0)
            time = time + (left / gain.clamp_min(torch.finfo(z.dtype).tiny)).clamp_(
                max=1 / torch.finfo(z.dtype).tiny / 1e3
            )
        return (torch.minimum(time * speed, room).view_as(z)) * near.gradient.sign()


@dataclass
class Nearest:
    """The nearest boundary of the linearised model: distance, gap, slope (b,), and the gap's gradient (b, ...)."""

    distance: Tensor
    gap: Tensor
    slope: Tensor
    gradient: Tensor

    @staticmethod
    def like(z: Tensor) -> Nearest:
        """Room for as many as `z` (b, ...) has examples."""
        return Nearest(z.new_empty(len(z)), z.new_empty(len(z)), z.new_empty(len(z)), torch.empty_like(z))

    def put(self, index: Tensor, other: Nearest, rows: Tensor | None = None) -> None:
        """Writes `rows` of `other` (None: all) at `index`."""
        for mine, new in (
            (self.distance, other.distance), (self.gap, other.gap), (self.slope, other.slope),
            (self.gradient, other.gradient),
        ):  # fmt: skip
            mine[index] = new if rows is None else new[rows]


def _gaps(logits: Tensor, criterion: Criterion) -> Tensor:
    """(b, K) each logit less the one to beat."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits - criterion.own(logits).unsqueeze(1)


def _rounding(logits: Tensor) -> Tensor:
    """(b,) what a logit may change by when the same image is judged in another batch."""
    return 100 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)


def _trim(
    victim: Victim, x: Tensor, witness: Tensor, criterion: Criterion, rows: Tensor, first: Tensor, last: Tensor
) -> Tensor:
    """The adversarial point nearest to `x` found on the way to `witness`, by regula falsi (Illinois) on the margin.

    Args:
        first, last: (b,) margins at `x` and at `witness`.
    """
    far = torch.ones_like(first)  # share of the way that is known to be adversarial
    near, inside = torch.zeros_like(far), torch.arange(len(x), device=x.device)
    for _ in range(_TRIMS):
        low, high = near[inside], far[inside]
        width = high - low
        root = (low - width * first[inside] / (last - first)[inside]).nan_to_num(0.0)
        # A little beyond the root, so that the next point is the new far end; never at an end, so that the width falls.
        at = torch.minimum(torch.maximum(root + 0.02 * width, low + 0.1 * width), high - 0.02 * width)
        way = x[inside]
        logits = victim.logits(way + expand(at, way) * (witness[inside] - way), rows[inside])
        margin = criterion.select(inside).margin(logits).to(x.dtype)
        beyond = criterion.select(inside).reached(logits) & (margin > _rounding(logits))
        far[inside], near[inside] = torch.where(beyond, at, high), torch.where(beyond, low, at)
        # Illinois: the end that stays counts half, else it would stay for ever.
        last[inside] = torch.where(beyond, margin, last[inside] / 2)
        first[inside] = torch.where(beyond, first[inside] / 2, margin)
        inside = inside[torch.nonzero(far[inside] - near[inside] > _TRIMMED).squeeze(1)]
        if not len(inside):
            break
    return x + expand(far, x) * (witness - x)
