"""Probe: some examples of an evaluation with their model, to attack or measure them once more."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, BudgetAttack
from robustlit.attacks.attack import AttackResult
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.memory import Pieces
from robustlit.attacks.victim import Victim
from robustlit.checks import rounded_up
from robustlit.results.evaluation import Evaluation
from robustlit.threat import Ball, expand

_SCREENING_STEPS = 5  # of the ascent that ranks examples by their distance to the decision boundary
RELATIVE_STEP = 2.5  # step size x steps / eps, as in Madry et al. 2018, arXiv:1706.06083
_GROUPS = 20  # distances that differ by less than a twentieth of eps count as equal


@dataclass
class Probe:
    """Some correctly classified examples, and which of them the evaluation's attacks did not break."""

    model: nn.Module  # as evaluated
    x: Tensor  # images (m, C, H, W)
    y: Tensor  # (m,)
    index: Tensor  # (m,) numbers in the data set
    robust: Tensor  # (m,) bool, no adversarial example within eps is known
    attack: BudgetAttack  # the evaluation's strongest that differentiates, at the budget that is judged
    norm: str
    eps: float  # of that budget, in pixel units
    seed: int
    represents: int = 0  # number of examples that these are the nearest to the boundary of; 0 if chosen otherwise
    meter: Counter[str] = field(default_factory=Counter)  # the "passes" spent, shared by all parts of a probe
    pieces: Pieces = field(default_factory=Pieces)  # in which memory suffices for an attack

    def __len__(self) -> int:
        return len(self.y)

    @property
    def n(self) -> int:
        """Number of examples that a count among these is a share of."""
        return self.represents or len(self)

    def part(self, keep: Tensor) -> Probe:
        """Return the examples in `keep` (positions or mask)."""
        x, y, index, robust = (values[keep] for values in (self.x, self.y, self.index, self.robust))
        return replace(self, x=x, y=y, index=index, robust=robust, represents=0)

    def first(self, count: int) -> Probe:
        """Return the first `count` examples."""
        return self.part(torch.arange(min(count, len(self)), device=self.y.device))

    def drawn(self, count: int) -> Probe:
        """Return `count` examples drawn by the seed, in the same order."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed))[: max(count, 0)]
        return self.part(order.sort().values.to(self.y.device))

    def hardest(self, count: int) -> Probe:
        """Return the `count` robust examples that a short ascent brings nearest to the decision boundary.

        They represent all of this probe: an example that more effort breaks has lost most of its margin early.
        """
        left = torch.nonzero(self.robust).squeeze(1)
        if len(left) > count:
            near = self.part(left)
            loss = ascend(near, _SCREENING_STEPS, RELATIVE_STEP / _SCREENING_STEPS)[-1]
            left = left[loss.topk(count).indices.sort().values]
        return replace(self.part(left), represents=self.n)

    def run(self, attack: Attack, model: nn.Module | None = None) -> AttackResult:
        """Attack the examples, on the model itself or on another, and count the passes."""
        net = self.model if model is None else model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks report what it would warn of
            found = self.pieces.done(
                lambda r: attack.run(net, self.x[r], self.y[r], index=self.index[r], seed=self.seed),
                torch.arange(len(self), device=self.y.device), attack.name,
            )  # fmt: skip
        result = AttackResult.joined(found)
        self.meter["passes"] += int((result.forwards + result.backwards).sum())
        return result

    def breaks(self, attack: Attack) -> int:
        """Return how many of the robust examples an attack breaks within its budget."""
        left = self.part(self.robust)
        return int(left.run(attack).success.sum()) if len(left) else 0

    def with_victim(self, look: Callable[[Victim], Any]) -> Any:
        """Return what `look` finds on the model as attacks see it, and count the passes."""
        with Victim(self.model, self.x) as victim:
            if victim.is_stochastic:
                victim.reseed(self.seed, self.index)
            found = look(victim)
            self.meter["passes"] += int((victim.passes.forwards + victim.passes.backwards).sum())
        return found

    def ball(self, radius: float | None = None) -> Ball:
        """Return the ball of `radius`, by default eps, around each example in the judged norm."""
        return Ball(self.x, self.x.new_full((len(self),), self.eps if radius is None else radius), self.norm)

    def draws(self, number: int) -> Draws:
        """Return a stream of random numbers for each example."""
        return Draws(self.seed, self.index).fork(number)


def ascend(probe: Probe, steps: int, step_over_eps: float) -> Tensor:
    """Climb the log odds against the true class from a random point of the ball; no example stops early.

    Returns:
        (T, m) log odds from the start to the end, each point as the attack sees it.
    """

    def look(victim: Victim) -> Tensor:
        loss_of = Criterion(probe.y, rejects=victim.criterion(probe.y).rejects).log_odds
        ball = probe.ball()
        z, losses = ball.random_point(probe.draws(7)), []
        for _ in range(steps):
            _, loss, gradient = victim.gradient(z, loss_of)
            losses.append(loss.float())
            z = ball.step(z, gradient, ball.eps * step_over_eps)
        if victim.view_is_model:  # votes are no logits, and another model's logits have another scale
            losses.append(loss_of(victim.logits(z)).float())
        return torch.stack(losses)

    losses: Tensor = probe.with_victim(look)
    return losses


def corner(ball: Ball, uniform: Tensor) -> Tensor:
    """Return a point on each ball's surface, its direction from `uniform` numbers (m, ...) in [0, 1]."""
    direction = (uniform - 0.5).sign()
    if ball.norm == "l2":
        direction = direction / direction[0].numel() ** 0.5
    return ball.project(ball.x + direction * expand(ball.eps, ball.x))


def robust_examples(evaluation: Evaluation, norm: str, eps: float) -> dict[int, bool]:
    """Return for each correctly classified example, by its number, whether no adaptive attack broke it within eps."""
    reach = evaluation.least_distances(None, distance=norm)
    examples = evaluation.table.drop_duplicates("index").sort_values("index")
    each = zip(examples["index"], examples["clean"], reach, strict=True)
    return {int(number): bool(least > rounded_up(eps, norm)) for number, clean, least in each if clean}


def nearest_of(
    evaluation: Evaluation, norm: str, eps: float, count: int, enough: int, seed: int
) -> tuple[list[int], int]:
    """Choose examples that are robust at `eps`, from those that the evaluation broke the least beyond it.

    The larger budgets of the evaluation show which examples are near the decision boundary, at no pass. Examples that
    were broken at about the same distance form a group; groups are taken, nearest first, until they hold `enough`.

    Args:
        evaluation: An evaluation at several budgets; at a single one, all robust examples are one group.
        norm, eps: The budget that is judged.
        count, enough: Numbers of examples to choose, drawn by `seed`, and that the groups must hold at least.

    Returns:
        Their numbers in the data set, ascending, and how many correctly classified examples they represent: all, or the
        same share of them as was drawn from the groups.
    """
    names = [a for a in evaluation.named(None, "adaptive") if evaluation.norm_of(a) == norm]
    reach = np.min([evaluation.least_distances(name, distance=norm) for name in names], axis=0)
    numbers = np.sort(evaluation.table["index"].unique())
    right = robust_examples(evaluation, norm, eps)
    robust = np.array([right.get(int(number), False) for number in numbers])
    group = np.where(np.isfinite(reach), np.round(_GROUPS * reach / eps), np.inf)
    held = numbers[:0]
    for level in np.unique(group[robust]):
        held = np.append(held, numbers[robust & (group == level)])
        if len(held) >= enough:
            break
    if not len(held):
        return [], len(right)  # no example is robust, so none is left out
    count = min(max(count, 0), len(held))
    drawn = np.random.default_rng(seed).permutation(held)[:count]
    return sorted(int(number) for number in drawn), round(len(right) * count / len(held))
