"""The rows of a table of checks: those that pass, or are undecided, for one reason share a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustlit.results.verdict import FAIL, Check


@dataclass(frozen=True)
class Row:
    """What a table of checks shows in one row: a check, or several with the same status, for the same reason."""

    checks: tuple[Check, ...]

    @property
    def first(self) -> Check:
        """The check, or the first of several; they share status and finding."""
        return self.checks[0]

    @property
    def numbers(self) -> str:
        """The numbers of the checks: "13", or "2, 3, 6-20"."""
        runs: list[list[int]] = []
        for number in (check.number for check in self.checks):
            if runs and number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        each = (f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
        return ", ".join(each)

    @property
    def name(self) -> str:
        """What holds where the check passes; of several their number."""
        return self.first.name if len(self.checks) == 1 else f"{len(self.checks)} checks, for one reason"


def rows_of(checks: Sequence[Check]) -> list[Row]:
    """Return checks as the rows of a table: those that passed, or are undecided, for one reason share a row."""
    groups: dict[tuple[object, ...], list[Check]] = {}
    for check in checks:
        own = (check.number,) if check.status == FAIL else ()
        groups.setdefault((check.status, check.finding, check.figure, *own), []).append(check)
    return [Row(tuple(group)) for group in groups.values()]
