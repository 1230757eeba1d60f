"""Curves small enough for a page: steps on a fixed ruler, never higher than the curve itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from robustlit.threat import TOLERANCE

_STEPS = (300, 2000)  # of an axis: a pixel or two for many curves, exact to the eye for few
_TOGETHER = 600_000  # steps of all curves of a page


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
        budgets: distances at which accuracies are quoted.
        steps: how many the axis is cut into, see `resolution`.

    Returns:
        Pairs, flat: how far on from the step before, in units, and how many examples break there.
    """
    broken = np.sort(reach[np.isfinite(reach)])
    if not len(broken):
        return []
    marks = np.floor((broken + TOLERANCE) / unit).astype(np.int64)
    stops = np.sort(np.asarray(budgets, dtype=float)) + TOLERANCE
    cell = np.floor(broken / (farthest / steps)).astype(np.int64) if farthest > 0 else np.zeros(len(broken), np.int64)
    cell[broken == 0] = -1  # what is misclassified without an attack is no one else's step
    key = cell * (len(stops) + 1) + np.searchsorted(stops, broken, side="left")
    starts = np.flatnonzero(np.append(True, np.diff(key) > 0))
    counts = np.diff(np.append(starts, len(broken)))
    distances = np.diff(marks[starts], prepend=0)
    return [int(v) for pair in zip(distances, counts, strict=True) for v in pair]
