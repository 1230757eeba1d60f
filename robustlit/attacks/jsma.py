"""JSMA: sets the pair of pixels that a saliency map points at, pair after pair."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
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
from robustlit.checks import check_choice, is_number

_AT_ONCE = 2**22  # pairs scored at a time: 32 MiB of float32 sums for any batch and image


@dataclass(frozen=True)
class JSMA(Attack):
    """Minimal L0 attack: moves the two values that most help the target and harm the other classes, and again.

    Papernot, McDaniel, Jha, Fredrikson, Celik, Swami: The limitations of deep learning in adversarial settings, 2016,
    arXiv:1511.07528, algorithms 2 and 3. With a the gradient of the target's output and b that of the sum of the
    others, the pair (p, q) of greatest saliency -(a_p + a_q)(b_p + b_q), among those with a_p + a_q > 0 and
    b_p + b_q < 0, changes by theta; for a negative theta both conditions turn round. Values at the edge of the box
    leave the search; where no pair meets the conditions the example stops. Each channel of a pixel counts as a value.

    The map is that of the logits. `outputs="probabilities"` takes it of the probabilities instead (Carlini and Wagner,
    2017, arXiv:1608.04644, compare the two as JSMA-Z and JSMA-F): they sum to 1, so b = -a, and the pair is that of the
    two largest gradients of the target; it changes fewer values, at one backward pass in place of two. a is then formed
    from the log odds, whose gradient differs from it by a factor alone and does not fade with confidence.

    Without a target, the wanted output is that of the runner-up class at that step (for probabilities: of all classes
    but the true one). Beyond the paper, a gradient is weighted by how far the box lets its value move.

    Args:
        theta: The amount that a step adds to both values, in pixel units: in [-1, 1], not 0.
        gamma: Share of the values that may change, in (0, 1]; one pair at least.
        outputs: Where the saliency map is taken, "logits" or "probabilities".
        norm: "l0".

    Raises:
        ValueError: theta, gamma or outputs out of range, unknown norm.
    """

    name: ClassVar[str] = "jsma"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    norm: str = field(default="l0", kw_only=True)
    theta: float = 1.0
    gamma: float = 0.145
    outputs: str = "logits"

    @property
    def expected_passes(self) -> float:
        return 1500 * self.gamma / abs(self.theta)  # of an image of a thousand values

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, name in ((self.theta, "theta"), (self.gamma, "gamma")):
            if not is_number(value):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 < abs(self.theta) <= 1:
            raise ValueError(f"theta must be in [-1, 1] pixel units and not 0, got {self.theta:g}")
        if not 0 < self.gamma <= 1:
            hint = f"; did you mean {self.gamma / 100:g}?" if 1 < self.gamma <= 100 else ""
            raise ValueError(f"gamma must be in (0, 1], a share of the values, got {self.gamma:g}{hint}")
        check_choice(self.outputs, "outputs", ("logits", "probabilities"))

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        best, active = Best(x), _Images(all_positions(x), rows, criterion, x, x.flatten(1))
        limit = max(2, int(self.gamma * active.x.shape[1]))
        for step in track(range(limit // 2 * math.ceil(1 / abs(self.theta)))):
            logits, target, others = self._gradients(victim, active)
            if not victim.view_is_model:
                logits = victim.logits(active.z, active.rows)
            record = best.record if step else best.record_success
            record(active.at, active.z, active.criterion.reached(logits), active.criterion.log_odds(logits))
            z = active.z.flatten(1)
            changed = z != active.x
            move = ((z + self.theta).clamp_(0, 1) - z).mul_(changed | (changed.sum(1, keepdim=True) + 2 <= limit))
            active.pair, found = most_salient_pair(target * move, others * move, move != 0)
            if not active.keep(found & ~best.success[active.at]):
                return best.points
            z = active.z.flatten(1)
            z = z.scatter(1, active.pair, (z.gather(1, active.pair) + self.theta).clamp_(0, 1))
            active.z = z.view_as(active.z)
        best.judge(victim, active, Criterion.log_odds)
        return best.points

    def _gradients(self, victim: Victim, active: _Images) -> tuple[Tensor, Tensor, Tensor]:
        """Return the view's logits, and the gradients (b, D) of the wanted output and of the sum of the others."""
        criterion = active.criterion
        if self.outputs == "probabilities":
            logits, _, gradient = victim.gradient(active.z, criterion.log_odds, active.rows)
            return logits, gradient.flatten(1), -gradient.flatten(1)
        logits, _, gradients = victim.jacobian(active.z, partial(_target_and_rest, criterion=criterion), active.rows)
        target, others = gradients.flatten(2).unbind(1)
        return logits, target, others


@dataclass
class _Images(Active):
    """The images still under attack, with the clean ones `x` (b, D), flat."""

    x: Tensor

    def __post_init__(self) -> None:
        self.pair = self.at  # (b, 2) values to change next, once chosen


def _target_and_rest(logits: Tensor, criterion: Criterion) -> Tensor:
    """Return (b, 2): the logit to raise, and the sum of the others."""
    logits, target = full_precision(logits), criterion.target
    if target is None:
        target = criterion.other_logits(logits.detach()).argmax(1)
    target = target.unsqueeze(1)
    return torch.cat([logits.gather(1, target), logits.scatter(1, target, 0.0).sum(1, keepdim=True)], 1)


def most_salient_pair(target: Tensor, others: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs p != q (b, 2) of greatest -(a_p + a_q)(b_p + b_q) with a_p + a_q > 0 > b_p + b_q, exactly.

    And (b,) bool, whether a pair meets the conditions; where none does, the pair means nothing.

    Without comparing all D x D pairs: both factors rise in each point (a, -b), so a value that two others equal or
    exceed in both coordinates is in no best pair that could not take one of those two instead. Only the first two
    Pareto layers are paired, a few dozen values, found by one sort and two running maxima.

    Args:
        target: (b, D) a.
        others: (b, D) b.
        free: (b, D) bool, the values that may be chosen.
    """
    a, order = torch.where(free, target, -math.inf).sort(dim=1, descending=True)
    c = torch.where(free, -others, -math.inf).gather(1, order)
    first = _records(c)
    front = first | _records(c.masked_fill(first, -math.inf))
    slot = front.cumsum(1) - 1
    row, place = torch.nonzero(front, as_tuple=True)
    size = int(front.sum(1).amax())
    index = torch.zeros(len(a), max(size, 2), dtype=torch.int64, device=a.device)
    gain, harm = a.new_full(index.shape, -math.inf), a.new_full(index.shape, -math.inf)
    slots = slot[row, place]
    index[row, slots], gain[row, slots], harm[row, slots] = order[row, place], a[row, place], c[row, place]
    # Scaled per example, so that no product overflows or sinks to 0; that changes no order.
    gain, harm = (t / t.abs().masked_fill(t.isinf(), 0).amax(1, keepdim=True).clamp_min(1e-30) for t in (gain, harm))
    best = a.new_full((len(a),), -1.0)
    pair = torch.zeros(len(a), 2, dtype=torch.int64, device=a.device)
    height = max(1, _AT_ONCE // gain.numel())
    for begin in range(0, gain.shape[1], height):
        both_gain = gain[:, begin : begin + height, None] + gain[:, None, begin + 1 :]  # (b, height, rest)
        both_harm = harm[:, begin : begin + height, None] + harm[:, None, begin + 1 :]
        if not both_gain.numel():
            break
        score = torch.where((both_gain > 0) & (both_harm > 0), both_gain * both_harm, -1.0)
        score = score.triu_() - torch.ones_like(score).tril_(-1)  # each pair once, no value with itself
        value, flat = score.flatten(1).max(1)
        p = flat.div(score.shape[2], rounding_mode="floor") + begin
        q = flat % score.shape[2] + begin + 1
        better = value > best
        best = torch.where(better, value, best)
        pair = torch.where(better.unsqueeze(1), index.gather(1, torch.stack([p, q], 1)), pair)
    return pair, best > -1


def _records(c: Tensor) -> Tensor:
    """Return (b, D) bool: greater than all before it in its row."""
    before = torch.nn.functional.pad(c.cummax(1).values[:, :-1], (1, 0), value=-math.inf)
    return c > before
