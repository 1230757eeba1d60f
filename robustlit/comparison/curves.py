"""Accuracy-distance curves as far as attacks searched, small enough for a page and never above the true curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustlit.checks import rounded_up
from robustlit.comparison.runs import INFORMED, Run
from robustlit.figures.extent import Search, attacked_to, searched
from robustlit.results.evaluation import Evaluation

AXES = ("l2", "linf")

_STEPS = (300, 2000)  # of an axis: one or two pixels wide for many curves, finer than the eye sees for few
_TOGETHER = 600_000  # steps of all curves of a page


@dataclass(frozen=True)
class View:
    """What the curves of a page show: one attack with its knowledge, or the worst case over all attacks (None)."""

    attack: str | None
    knowledge: str


def views(runs: Sequence[Run]) -> list[View]:
    """Return the views that at least one run has, worst cases first."""
    pairs = list(dict.fromkeys(pair for run in runs if run.evaluation for pair in run.evaluation.runs))
    ran = {knowledge for _, knowledge in pairs}
    return [*(View(None, known) for known in INFORMED if known in ran), *(View(*pair) for pair in pairs)]


def curves(runs: Sequence[Run], shown: Sequence[View]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return accuracy against distance of every run in every view.

    Returns:
        For each axis its `unit` and `end`; for each run {axis: {number of the view: curve}}. A curve has "steps" as
        `thinned` writes them; "to", the distance up to which the attack searched, null without a bound; and "at", the
        only budgets at which the curve is exact, null where it is exact everywhere (see `Search`).
    """
    axes: dict[str, Any] = {}
    of_runs: list[dict[str, Any]] = [{axis: {} for axis in AXES} for _ in runs]
    for axis in AXES:
        lines = {
            (r, k): _line(run, run.evaluation, view, axis)
            for r, run in enumerate(runs)
            if run.evaluation is not None
            for k, view in enumerate(shown)
            if any(view.knowledge == known and view.attack in (None, a) for a, known in run.evaluation.runs)
        }
        ends: dict[int, float] = {}  # view -> where the longest of its lines ends
        for (_, k), line in lines.items():
            ends[k] = max(ends.get(k, 0.0), line.end)
        end = max(ends.values(), default=0.0)
        axes[axis] = {"unit": ruler(end), "end": end}
        reported = {run.budget[1] for run in runs if run.budget is not None and run.budget[0] == axis}
        steps = int(np.clip(_TOGETHER // max(1, 2 * len(lines)), *_STEPS))
        for (r, k), line in lines.items():
            stops = [rounded_up(budget, axis) for budget in sorted(reported.union(line.search.budgets))]
            of_runs[r][axis][str(k)] = {
                "steps": thinned(line.reach, ruler(end), ends[k], stops, steps),
                "to": round(line.to, 9) if math.isfinite(line.to) else None,
                "at": None if line.search.nearest else [round(budget, 9) for budget in line.search.budgets],
            }
    return axes, of_runs


@dataclass(frozen=True)
class _Line:
    """One run in one view."""

    reach: np.ndarray  # (n,) least distances of adversarial examples, inf beyond the searched distance
    to: float  # the distance up to which the attack searched
    search: Search

    @property
    def end(self) -> float:
        """Where the line ends: at its last adversarial example, or at `to` where some examples are robust."""
        finite = self.reach[np.isfinite(self.reach)]
        ended = math.isfinite(self.to) and len(finite) < len(self.reach)
        return self.to if ended else float(finite.max(initial=0.0))


def _line(run: Run, evaluation: Evaluation, view: View, axis: str) -> _Line:
    worst_of_all = view.attack is None and view.knowledge == run.knowledge
    known = run.counted if worst_of_all else [view.knowledge]
    reach = np.min([evaluation.least_distances(view.attack, distance=axis, knowledge=k) for k in known], axis=0)
    to = attacked_to(evaluation, view.attack, distance=axis, knowledge=view.knowledge)
    search = searched(evaluation, view.attack, distance=axis, knowledge=view.knowledge)
    return _Line(np.where(reach <= rounded_up(to, axis), reach, np.inf), to, search)


def ruler(farthest: float) -> float:
    """Return the unit in which distances are written: a power of ten, about 1/10 000 of the farthest."""
    return 10.0 ** (math.floor(math.log10(farthest)) - 4) if farthest > 0 else 1e-4


def thinned(
    reach: np.ndarray, unit: float, farthest: float, budgets: Sequence[float] = (), steps: int = 200
) -> list[int]:
    """Return a curve as the steps at which examples break, with neighbours merged.

    Examples that break within one of the axis' `steps` are counted at the smallest of their distances, so that the
    curve is never above the true one; at each of `budgets` it is exact.

    Args:
        reach: (n,) least distance of an adversarial example per example, inf where none is known.
        unit: Unit of the returned distances, see `ruler`.
        farthest: End of the axis.
        budgets: Distances at which accuracies are reported or attacks ran, `rounded_up` as the page reads them off.
        steps: Number of steps of the axis.

    Returns:
        Flat pairs: the distance from the step before, in units, and the number of examples that break there.
    """
    broken = np.sort(reach[np.isfinite(reach)])
    if not len(broken):
        return []
    marks = np.floor(broken / unit).astype(np.int64)
    stops = np.sort(np.asarray(budgets, dtype=float))
    passed = np.searchsorted(stops, broken, side="left")
    # An example that breaks just beyond a budget must not be rounded down to it.
    marks = np.maximum(marks, np.append(0, np.floor(stops / unit).astype(np.int64) + 1)[passed])
    cell = np.floor(broken / (farthest / steps)).astype(np.int64) if farthest > 0 else np.zeros(len(broken), np.int64)
    cell[broken == 0] = -1  # misclassified without an attack: a step of its own
    key = cell * (len(stops) + 1) + passed
    starts = np.flatnonzero(np.append(True, np.diff(key) > 0))
    counts = np.diff(np.append(starts, len(broken)))
    distances = np.diff(marks[starts], prepend=0)
    return [int(v) for pair in zip(distances, counts, strict=True) for v in pair]
