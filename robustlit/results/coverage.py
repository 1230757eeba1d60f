"""Which attacks ran, with what knowledge and at which budgets: the table of examples, cut by them once."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robustlit.results.table import TOLERANCE, EvaluationError


class Coverage:
    """The runs of a sweep, each a pair (attack, knowledge) with its rows of the table.

    Cut once: comparing a column of names for every number asked for took most of the time of a report.

    Args:
        table: of examples.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        groups = table.groupby(["attack", "knowledge"], sort=False)
        self._rows = {(str(attack), str(knowledge)): rows for (attack, knowledge), rows in groups}
        budgets = {run: rows["eps"].dropna().unique() for run, rows in self._rows.items()}
        self._budgets = {run: sorted(float(eps) for eps in each) for run, each in budgets.items()}
        self._norms = {attack: str(rows["norm"].iloc[0]) for (attack, _), rows in self._rows.items()}
        self._nearest: dict[tuple[str, str, str], pd.Series] = {}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs (attack, knowledge), in the order in which they ran."""
        return list(self._rows)

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, in the order in which they ran."""
        return list(dict.fromkeys(attack for attack, _ in self._rows))

    def rows(self, attack: str, knowledge: str) -> pd.DataFrame:
        """The rows of a run."""
        self.named(attack, knowledge)
        return self._rows[attack, knowledge]

    def budgets(self, attack: str, knowledge: str) -> list[float]:
        """The budgets of a run, ascending; empty for a minimal attack."""
        self.named(attack, knowledge)
        return list(self._budgets[attack, knowledge])

    def norm_of(self, attack: str) -> str:
        """The norm that an attack measures its budget in."""
        self._check(attack)
        return self._norms[attack]

    def covers(self, attack: str, knowledge: str, norm: str, eps: float) -> bool:
        """Whether a run looked for witnesses within this budget: it ran at it, or is minimal in this norm."""
        budgets = self.budgets(attack, knowledge)
        return self.norm_of(attack) == norm and (not budgets or any(abs(e - eps) <= TOLERANCE for e in budgets))

    def nearest(self, attack: str, knowledge: str, distance: str) -> pd.Series:
        """Least distance of a run's witness for each example number, inf where none is known."""
        key = (attack, knowledge, distance)
        if key not in self._nearest:
            rows = self.rows(attack, knowledge)
            self._nearest[key] = rows[distance].where(rows["success"], np.inf).groupby(rows["index"]).min()
        return self._nearest[key]

    def named(self, attack: str | None, knowledge: str) -> list[str]:
        """The attacks that ran with `knowledge`: all, or the one asked for.

        Raises:
            EvaluationError: there is none.
        """
        if attack is not None:
            self._check(attack)
        known = [k for a, k in self._rows if attack in (None, a)]
        if knowledge not in known:
            there = ", ".join(dict.fromkeys(known))
            raise EvaluationError(f"nothing was run with knowledge {knowledge!r}; there is {there}")
        return [a for a, k in self._rows if k == knowledge and attack in (None, a)]

    def _check(self, attack: str) -> None:
        if attack not in self._norms:
            raise EvaluationError(f"no attack named {attack!r} was run; there are {', '.join(self.attacks)}")
