"""What a check is: its place in the list, what it needs, and the rule by which it passes, fails or stays undecided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustlit.results.intervals import wilson_interval
from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Check

if TYPE_CHECKING:
    from robustlit.verdict.context import Context
    from robustlit.verdict.effort import Price

# The examples that a check looks at.
TABLE = "table"  # none: the evaluation's table answers
WIDE = "wide"  # many examples, a few passes each
FEW = "few"  # some of these, an attack each
HARD = "hard"  # as many, the nearest to the decision boundary, several attacks each
SHORT = "short"  # as many, a short attack each
ROWS = "rows"  # rows of the table, whose attack is run again

FEWEST = 5  # examples below which a probe says nothing


@dataclass(frozen=True)
class Need:
    """A condition without which a check is not made."""

    met: Callable[[Context], bool]
    otherwise: str  # the finding where it is not met
    passes: bool = False  # the check then passes, with the figure 0; else it is undecided


@dataclass(frozen=True)
class CheckSpec:
    """One check of `robustlit.verdict.checks.CHECKS`."""

    number: int
    name: str  # what holds where the check passes
    limit: float  # the largest figure that passes
    source: str  # the paper that asks for the check, or names its limit
    sample: str  # the examples that `look` looks at: TABLE, WIDE, FEW or HARD, SHORT or ROWS
    look: Callable[[CheckSpec, Context], Check] | None = None
    reads: Callable[[CheckSpec, Context], Check | None] | None = None  # where the table answers alone; before `look`
    needs: tuple[Need, ...] = ()  # conditions of `look`, in the order in which they are tested
    cost: Callable[[Price], float] = lambda price: 0.0  # passes that `look` spends on one example, rounded up
    advice: str = ""  # what to try where it fails
    fewest: int = FEWEST  # examples below which the quick profile leaves it undecided
    applies: Callable[[Context], bool] = lambda context: True  # whether a model has what is checked
    last: bool = False  # after all others, as it spends what is left of a quick verdict's passes

    def check(self, status: str, finding: str, figure: float | None = None, limit: float | None = None) -> Check:
        """Return this check with its status and finding."""
        return Check(self.number, self.name, status, finding, figure, limit, self.source)

    def undecided(self, reason: str) -> Check:
        """Return this check as one that could not be made."""
        return self.check(INCONCLUSIVE, reason)

    def share(self, count: int, n: int, found: str) -> Check:
        """Check that a share, `count` of `n` examples, stays within the limit; `found` names what was counted.

        It passes at or below the limit, and fails only where the whole Wilson 95 % interval lies above: one example
        of a few decides nothing.
        """
        if n < 1:
            return self.check(INCONCLUSIVE, "no example was looked at; evaluate more", None, self.limit)
        text = f"{found} {count} of {n} ({100 * count / n:.3g} %; at most {100 * self.limit:.3g} %)"
        return self._decided(count / n, text, wilson_interval(count, n)[0], "too few to tell")

    def value(self, value: float, found: str, low: float | None = None) -> Check:
        """Check that a number stays within the limit; `found` names it.

        If its 95 % interval has a lower end `low`, the check fails only where that exceeds the limit too.
        """
        if not math.isfinite(value):
            return self.check(INCONCLUSIVE, f"{found} is no number: {self.advice}", None, self.limit)
        text = f"{found} {value:.3g} (at most {self.limit:.3g})"
        return self._decided(value, text, value if low is None else low, "too near the limit to tell")

    def _decided(self, figure: float, text: str, low: float, doubt: str) -> Check:
        """Return this check for a figure whose 95 % interval starts at `low`."""
        if figure <= self.limit:
            return self.check(PASS, text, figure, self.limit)
        status, doubted = (FAIL, "") if low > self.limit else (INCONCLUSIVE, f", {doubt}")
        return self.check(status, f"{text}{doubted}: {self.advice}", figure, self.limit)
