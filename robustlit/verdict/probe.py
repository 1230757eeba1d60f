"""Probe: a few examples of an evaluation and their model, to look at them once more from another side."""

from __future__ import annotations

import warnings
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
from robustlit.attacks.victim import Victim
from robustlit.results.evaluation import Evaluation
from robustlit.threat import TOLERANCE, Ball

_SCREEN = 5  # steps of the look that tells who is nearest to the boundary
_GROUPS = 20  # distances that differ by less than a twentieth of eps are about one


@dataclass
class Meter:
    """Forward and backward passes spent so far."""

    passes: int = 0


@dataclass
class Probe:
    """A few rightly classified examples, and who of them the evaluation's attacks left standing.

    Args:
        model: as evaluated.
        x, y, index: images (m, C, H, W), classes (m,), numbers in the data set (m,).
        standing: (m,) bool, no witness within eps is known.
        attack: the strongest attack of the evaluation that differentiates, at the budget that is judged.
        norm, eps: that budget.
        seed: of random draws.
        stands_for: how many examples these are the nearest to the boundary of; 0 where they stand for themselves.
        meter: what was spent; shared by all parts of a probe.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    standing: Tensor
    attack: BudgetAttack
    norm: str
    eps: float
    seed: int
    stands_for: int = 0
    meter: Meter = field(default_factory=Meter)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def n(self) -> int:
        """Of how many examples a count among these is a share."""
        return self.stands_for or len(self)

    def part(self, keep: Tensor) -> Probe:
        """The examples in `keep` (positions or mask)."""
        x, y, index, standing = (values[keep] for values in (self.x, self.y, self.index, self.standing))
        return replace(self, x=x, y=y, index=index, standing=standing, stands_for=0)

    def first(self, count: int) -> Probe:
        """The first `count` examples."""
        return self.part(torch.arange(min(count, len(self)), device=self.y.device))

    def hardest(self, count: int) -> Probe:
        """The `count` standing examples that a few steps bring nearest to the boundary; they stand for all of these.

        Who falls to more effort has long lost most of the margin, so the others need not be looked at.
        """
        left = torch.nonzero(self.standing).squeeze(1)
        if len(left) > count:
            near = self.part(left)
            loss = ascend(near, _SCREEN, 2.5 / _SCREEN)[-1]
            left = left[loss.topk(count).indices.sort().values]
        return replace(self.part(left), stands_for=self.n)

    def run(self, attack: Attack, model: nn.Module | None = None) -> AttackResult:
        """Runs an attack on the examples, on the model itself or on another; counts its passes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would say is for the checks to find
            result = attack.run(
                self.model if model is None else model, self.x, self.y, index=self.index, seed=self.seed
            )
        self.meter.passes += int((result.forwards + result.backwards).sum())
        return result

    def breaks(self, attack: Attack) -> int:
        """How many of the examples that stood an attack breaks within eps."""
        left = self.part(self.standing)
        if not len(left):
            return 0
        result = left.run(attack)
        if not isinstance(attack, BudgetAttack):
            return int((result.success & (result.distance <= self.eps + TOLERANCE)).sum())
        return int(result.success.sum())

    def with_victim(self, look: Callable[[Victim], Any], model: nn.Module | None = None) -> Any:
        """`look` at the examples through a victim, its passes counted."""
        with Victim(self.model if model is None else model, self.x) as victim:
            if victim.is_stochastic:
                victim.reseed(self.seed, self.index)
            found = look(victim)
            self.meter.passes += int((victim.forwards + victim.backwards).sum())
        return found

    def ball(self, radius: float | None = None) -> Ball:
        """What lies within eps, or `radius`, of each example, in the norm that is judged."""
        return Ball(self.x, self.x.new_full((len(self),), self.eps if radius is None else radius), self.norm)

    def draws(self, number: int) -> Draws:
        """A stream of random numbers for each example."""
        return Draws(self.seed, self.index).fork(number)


def ascend(probe: Probe, steps: int, step_over_eps: float) -> Tensor:
    """Projected ascent from a random point of the ball, nobody leaving early.

    Returns:
        (T, m) log odds against the true class, from the start to the end, each point as the attack sees it.
    """

    def look(victim: Victim) -> Tensor:
        climbed = Criterion(probe.y, rejects=victim.criterion(probe.y).rejects).log_odds
        ball = probe.ball()
        z, losses = ball.random_point(probe.draws(7)), []
        for _ in range(steps):
            _, loss, gradient = victim.gradient(z, climbed)
            losses.append(loss.float())
            z = ball.step(z, gradient, ball.eps * step_over_eps)
        if victim.sees_itself:  # votes are no logits, and another's are on another scale
            losses.append(climbed(victim.logits(z)).float())
        return torch.stack(losses)

    losses: Tensor = probe.with_victim(look)
    return losses


def standing_of(evaluation: Evaluation, norm: str, eps: float) -> dict[int, bool]:
    """Number of each rightly classified example -> no attack that knew the defense broke it within eps."""
    reach = evaluation.least_distances(None, distance=norm)
    numbers = np.sort(evaluation.table["index"].unique())
    clean = evaluation.table.drop_duplicates("index").set_index("index")["clean"]
    return {
        int(number): bool(least > eps + TOLERANCE)
        for number, least in zip(numbers, reach, strict=True)
        if bool(clean[number])
    }


def nearest_of(
    evaluation: Evaluation, norm: str, eps: float, count: int, enough: int, seed: int
) -> tuple[list[int], int]:
    """Examples that stood at `eps`, from those that the evaluation broke the least beyond it.

    Larger budgets of the sweep have told who is near the boundary, at no pass. Examples broken at about one distance
    are of one group; groups are taken, nearest first, until they hold `enough`. Who falls to more effort is among them.

    Args:
        evaluation: at several budgets, or all that stood are one group.
        norm, eps: the budget that is judged.
        count: how many to choose, drawn by `seed` where the groups hold more.
        enough: how many the groups must hold at least.
        seed: of the draw.

    Returns:
        Their numbers in the data set, ascending, and how many rightly classified examples they stand for: all, or as
        large a share of them as was drawn from the groups.
    """
    names = [a for a, known in evaluation.runs if known == "adaptive" and evaluation.norm_of(a) == norm]
    reach = np.min([evaluation.least_distances(name, distance=norm) for name in names], axis=0)
    numbers = np.sort(evaluation.table["index"].unique())
    standing = standing_of(evaluation, norm, eps)
    stood = np.array([standing.get(int(number), False) for number in numbers])
    group = np.where(np.isfinite(reach), np.round(_GROUPS * reach / eps), np.inf)
    held = numbers[:0]
    for level in np.unique(group[stood]):
        held = np.append(held, numbers[stood & (group == level)])
        if len(held) >= enough:
            break
    if not len(held):
        return [], len(standing)  # nobody stood, so nobody of them is overlooked
    count = min(max(count, 0), len(held))
    drawn = np.random.default_rng(seed).permutation(held)[:count]
    return sorted(int(number) for number in drawn), round(len(standing) * count / len(held))
