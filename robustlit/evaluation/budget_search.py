"""The least budget that breaks each example, without running an attack at every budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from robustlit.attacks import BudgetAttack
from robustlit.attacks.progress import track
from robustlit.checks import rounded_up
from robustlit.evaluation.outcome import Batch, Outcome

Width = TypeVar("Width", int, Tensor)


class BudgetSearch:
    """Attack a batch at the budgets that are needed to know each example's least breaking budget.

    Each clean example is attacked at the attack's own eps, the budget that is quoted. For those that break, the smaller
    budgets are searched by sections, from the least that holds the adversarial example already found; examples at
    different budgets share a batch. The others are attacked at each larger budget in turn until they break. An example
    that is robust at a budget is taken to be robust at the smaller ones that were skipped: an attack that fails with
    more room rarely succeeds with less. The outcome at the attack's own eps rests on no such assumption.

    Args:
        batch, attack: The batch and the attack.
        budgets: Budgets in pixel units, ascending, the attack's own eps among them.
        start: What is known before the attack.
    """

    def __init__(self, batch: Batch, attack: BudgetAttack, budgets: Sequence[float], start: Outcome) -> None:
        self.batch, self.attack, self.budgets, self.start = batch, attack, budgets, start
        self.radii = batch.x.new_tensor(list(budgets))
        self.outcomes = [start.copy() for _ in budgets]

    def run(self) -> dict[float, Outcome]:
        """Return the outcome at each budget."""
        rows = torch.nonzero(~self.start.success).squeeze(1)
        if len(rows):
            own = self.budgets.index(self.attack.eps)
            stages = track(range(3), repetitions(self.budgets, self.attack.eps))
            next(stages)
            broken, holds = self._attack(rows, torch.full_like(rows, own))
            next(stages)
            self._search_below(rows[broken], holds[broken], own)
            next(stages)
            self._search_above(rows[~broken], own)
        for eps, outcome in zip(self.budgets, self.outcomes, strict=True):
            for other in self.outcomes:
                outcome.inherit(other, self.attack.norm, eps)
        return dict(zip(self.budgets, self.outcomes, strict=True))

    def _search_below(self, rows: Tensor, high: Tensor, own: int) -> None:
        """Search `rows` (b,), broken at the budgets numbered `high` (b,): the least such number is in (low, high]."""
        low = torch.full_like(rows, -1)
        for _ in track(range(_most_rounds(own + 1))):
            if not len(open_ := torch.nonzero(high - low > 1).squeeze(1)):
                return
            middle = low[open_] + _next_step(high[open_] - low[open_])
            broken, holds = self._attack(rows[open_], middle)
            high[open_[broken]], low[open_[~broken]] = holds[broken], middle[~broken]

    def _search_above(self, rows: Tensor, own: int) -> None:
        """Attack `rows` (b,), robust at the budget numbered `own`, at each larger one until they break."""
        for number in track(range(own + 1, len(self.budgets))):
            if len(rows):
                rows = rows[~self._attack(rows, torch.full_like(rows, number))[0]]

    def _attack(self, rows: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Attack `rows` (b,) at the budgets numbered `numbers` (b,).

        Return which examples broke and the number of the least budget that holds the point found, (b,) each.
        """
        found = self.batch.attacked(self.attack, rows, self.radii[numbers])
        for number in numbers.unique().tolist():
            here = torch.nonzero(numbers == number).squeeze(1)
            self.outcomes[number].put(rows[here], found.select(here))
        holds = torch.searchsorted(rounded_up(self.radii, self.attack.norm), found.columns[self.attack.norm])
        return found.success, holds.minimum(numbers)


def repetitions(budgets: Sequence[float], eps: float) -> tuple[float, float, float]:
    """Return how many times the attack's work is done at `eps`, below and above, roughly; for the progress shown."""
    own = budgets.index(eps)
    return 1.0, own / 2, len(budgets) - 1.0 - own


def _next_step(width: Width) -> Width:
    """Return how many budgets above the lower end of a range of `width` budgets, at least 2, to attack next."""
    # Nearer to the upper end than half way: a failing attack costs all its steps, a successful one only a few.
    return 3 * width // 4


def _most_rounds(width: int) -> int:
    """Return the largest number of attacks that it takes to narrow a range of `width` budgets to one."""
    return 0 if width <= 1 else 1 + _most_rounds(_next_step(width))  # the lower part is never the longer one
