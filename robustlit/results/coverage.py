"""Which attacks ran, with what knowledge and at which budgets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from robustlit.checks import TOLERANCE
from robustlit.results.table import EvaluationError, check_columns, rename


@dataclass
class Coverage:
    """The rows of a table grouped by run, a pair (attack, knowledge).

    Args:
        table: The table of examples; not to be changed, because values derived from it are cached.
    """

    table: pd.DataFrame

    def __post_init__(self) -> None:
        check_columns(self.table)
        self._nearest: dict[tuple[str, str, str], pd.Series] = {}

    @cached_property
    def _rows(self) -> dict[tuple[str, str], pd.DataFrame]:
        # Grouped once: comparing a column of names for every number took most of the time of a report.
        groups = self.table.groupby(["attack", "knowledge"], sort=False)
        return {(str(attack), str(knowledge)): rows for (attack, knowledge), rows in groups}

    @cached_property
    def _budgets(self) -> dict[tuple[str, str], list[float]]:
        return {run: sorted(map(float, rows["eps"].dropna().unique())) for run, rows in self._rows.items()}

    @cached_property
    def _norms(self) -> dict[str, str]:
        return {attack: str(rows["norm"].iloc[0]) for (attack, _), rows in self._rows.items()}

    @property
    def runs(self) -> list[tuple[str, str]]:
        """The pairs (attack, knowledge), in the order in which they ran."""
        return list(self._rows)

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, in the order in which they ran."""
        return list(dict.fromkeys(attack for attack, _ in self._rows))

    def rows(self, attack: str, knowledge: str) -> pd.DataFrame:
        """Return the rows of a run."""
        return self._rows[self.named(attack, knowledge)[0], knowledge]

    def budgets(self, attack: str, knowledge: str = "adaptive") -> list[float]:
        """Return the budgets that an attack was run at, ascending; empty for a minimal attack."""
        return list(self._budgets[self.named(attack, knowledge)[0], knowledge])

    def norm_of(self, attack: str) -> str:
        """Return the norm of an attack's budget."""
        return self._norms[self._known(attack)]

    def rests_on(self, *, norm: str = "linf", eps: float, knowledge: str = "adaptive") -> list[str]:
        """Return the attacks that ran at this budget or are minimal in its norm, on which `worst_case` there rests."""

        def searched(name: str) -> bool:
            budgets = self.budgets(name, knowledge)
            return self.norm_of(name) == norm and (not budgets or any(abs(e - eps) <= TOLERANCE for e in budgets))

        return [name for name in self.named(None, knowledge) if searched(name)]

    def named(self, attack: str | None, knowledge: str) -> list[str]:
        """Return the attacks that ran with `knowledge`: the one asked for, or all for None; at least one.

        Raises:
            EvaluationError: No such attack ran.
        """
        wanted = None if attack is None else self._known(attack)
        known = [k for a, k in self._rows if wanted in (None, a)]
        if knowledge not in known:
            there = ", ".join(dict.fromkeys(known))
            raise EvaluationError(f"nothing was run with knowledge {knowledge!r}; there is {there}")
        return [a for a, k in self._rows if k == knowledge and wanted in (None, a)]

    def _nearest_of(self, attack: str, knowledge: str, distance: str) -> pd.Series:
        """Return the least distance at which a run broke each example, inf where it did not; indexed by example."""
        key = (attack, knowledge, distance)
        if key not in self._nearest:
            rows = self.rows(attack, knowledge)
            self._nearest[key] = rows[distance].where(rows["success"], np.inf).groupby(rows["index"]).min()
        return self._nearest[key]

    def _known(self, attack: str) -> str:
        """Return the name of an attack in this table; a former name gives a DeprecationWarning."""
        if attack in self._norms:
            return attack
        if rename(attack) in self._norms:
            warnings.warn(f"{attack!r} is now called {rename(attack)!r}", DeprecationWarning, stacklevel=4)
            return rename(attack)
        raise EvaluationError(f"no attack named {attack!r} was run; there are {', '.join(self.attacks)}")
