"""Curves as far as attacks looked, small enough for a page: steps on a fixed ruler, never higher than the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustlit.comparison.runs import INFORMED, Run, text
from robustlit.figures.extent import Search, attacked_to, searched
from robustlit.results.evaluation import Evaluation
from robustlit.results.table import TOLERANCE

AXES = ("l2", "linf")

_STEPS = (300, 2000)  # of an axis: a pixel or two for many curves, exact to the eye for few
_TOGETHER = 600_000  # steps of all curves of a page


@dataclass(frozen=True)
class View:
    """One thing that runs are looked at under: an attack with its knowledge, or the worst case over all (None)."""

    attack: str | None
    knowledge: str

    @property
    def name(self) -> str:
        """As a figure names it."""
        return text(Evaluation.label(self.attack or "worst case", self.knowledge))


def views(runs: Sequence[Run]) -> list[View]:
    """All that any of the runs was looked at under, worst cases first."""
    pairs = list(dict.fromkeys(pair for run in runs if run.evaluation for pair in run.evaluation.runs))
    known = [k for k in INFORMED if any(k == knowledge for _, knowledge in pairs)]
    return [*(View(None, k) for k in known), *(View(attack, knowledge) for attack, knowledge in pairs)]


def curves(runs: Sequence[Run], shown: Sequence[View]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy against distance of every run under every view.

    Returns:
        For each axis its `unit` and `end`; for each run {axis: {number of the view: {"steps", as `thinned` writes them,
        "to", how far the attack looked, null without a bound, and "at", the budgets at which alone the curve is exact,
        null where it is everywhere (see `Search`)}}}. As in the figures, nothing is said beyond.
    """
    axes: dict[str, Any] = {}
    of_runs: list[dict[str, Any]] = [{axis: {} for axis in AXES} for _ in runs]
    for axis in AXES:
        lines = {
            (r, k): _line(run, view, axis)
            for r, run in enumerate(runs)
            if run.evaluation is not None
            for k, view in enumerate(shown)
            if any(view.knowledge == known and view.attack in (None, a) for a, known in run.evaluation.runs)
        }
        ends: dict[int, float] = {}  # of the views: each is drawn to where the farthest of its own lines ends
        for (_, k), line in lines.items():
            ends[k] = max(ends.get(k, 0.0), _farthest(line.reach, line.to))
        end = max(ends.values(), default=0.0)
        quoted = {run.budget[1] for run in runs if run.budget is not None and run.budget[0] == axis}
        axes[axis] = {"unit": ruler(end), "end": end}
        steps = resolution(2 * len(lines))
        for (r, k), line in lines.items():
            stops = sorted(quoted.union(line.search.budgets))
            of_runs[r][axis][str(k)] = {
                "steps": thinned(line.reach, ruler(end), ends[k], stops, steps),
                "to": round(line.to, 9) if math.isfinite(line.to) else None,
                "at": None if line.search.nearest else [round(budget, 9) for budget in line.search.budgets],
            }
    return axes, of_runs


@dataclass(frozen=True)
class _Line:
    """One run under one view.

    Args:
        reach: (n,) least distances of witnesses, inf beyond where it was looked.
        to: how far that was.
        search: where it is exact.
    """

    reach: np.ndarray
    to: float
    search: Search


def _line(run: Run, view: View, axis: str) -> _Line:
    evaluation = run.evaluation
    assert evaluation is not None
    of_all = view.attack is None and view.knowledge == run.knowledge
    known = run.counted if of_all else [view.knowledge]
    reach = np.min([evaluation.least_distances(view.attack, distance=axis, knowledge=k) for k in known], axis=0)
    to = attacked_to(evaluation, view.attack, distance=axis, knowledge=view.knowledge)
    search = searched(evaluation, view.attack, distance=axis, knowledge=view.knowledge)
    return _Line(np.where(reach <= to + TOLERANCE, reach, np.inf), to, search)


def _farthest(reach: np.ndarray, to: float) -> float:
    """Where a line ends: at its last witness, or farther where it was looked and something stood."""
    finite = reach[np.isfinite(reach)]
    last = float(finite.max()) if len(finite) else 0.0
    return to if math.isfinite(to) and len(finite) < len(reach) else last


def resolution(curves: int) -> int:
    """How many steps an axis is cut into, so that the curves of a page stay small together."""
    return int(np.clip(_TOGETHER // max(1, curves), *_STEPS))


def ruler(farthest: float) -> float:
    """The unit that distances are written in: a power of ten, about 1/10 000 of the farthest."""
    return 10.0 ** (math.floor(math.log10(farthest)) - 4) if farthest > 0 else 1e-4


def thinned(
    reach: np.ndarray, unit: float, farthest: float, budgets: Sequence[float] = (), steps: int = 200
) -> list[int]:
    """A curve as the steps at which examples break, neighbours put together.

    Those in one of the axis' `steps` become one at the nearest of their distances, so what is read off is never higher
    than the truth; at each of `budgets` it is exact.

    Args:
        reach: (n,) least distance of a witness per example, inf where none is known.
        unit: of the distances returned, see `ruler`.
        farthest: end of the axis.
        budgets: distances at which accuracies are quoted, or at which attacks ran.
        steps: how many the axis is cut into, see `resolution`.

    Returns:
        Pairs, flat: how far on from the step before, in units, and how many examples break there.
    """
    broken = np.sort(reach[np.isfinite(reach)])
    if not len(broken):
        return []
    marks = np.floor(broken / unit).astype(np.int64)
    stops = np.sort(np.asarray(budgets, dtype=float)) + TOLERANCE  # which the page grants, too
    passed = np.searchsorted(stops, broken, side="left")
    # Who breaks just beyond a quoted budget is not written down to it.
    marks = np.maximum(marks, np.append(0, np.floor(stops / unit).astype(np.int64) + 1)[passed])
    cell = np.floor(broken / (farthest / steps)).astype(np.int64) if farthest > 0 else np.zeros(len(broken), np.int64)
    cell[broken == 0] = -1  # what is misclassified without an attack is no one else's step
    key = cell * (len(stops) + 1) + passed
    starts = np.flatnonzero(np.append(True, np.diff(key) > 0))
    counts = np.diff(np.append(starts, len(broken)))
    distances = np.diff(marks[starts], prepend=0)
    return [int(v) for pair in zip(distances, counts, strict=True) for v in pair]
