"""How far attacks searched a distance, and where a curve over it is exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from robustlit.checks import TOLERANCE
from robustlit.results.evaluation import Evaluation


def attacked_to(
    evaluation: Evaluation, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive"
) -> float:
    """Return the distance, in pixel units or inf, up to which images were attacked; beyond it accuracy is not known.

    A budget attack searches up to its largest budget; in another distance, up to the farthest image that it returned,
    failed attempts included. A minimal attack searches without a bound.

    Args:
        attack: One attack; None takes the worst case, known as far as any attack in this distance searched (if there is
            none, as far as any attack did).
        distance: "l0", "l1", "l2" or "linf".
        knowledge: "greybox", "adaptive" or "blackbox".

    Raises:
        EvaluationError: The attack did not run with this knowledge, or there is no such distance.
    """
    evaluation.least_distances(attack, distance=distance, knowledge=knowledge)  # checks the arguments
    if attack is None:
        names = evaluation.named(None, knowledge)
        of_distance = [name for name in names if evaluation.norm_of(name) == distance]
        return max(attacked_to(evaluation, n, distance=distance, knowledge=knowledge) for n in of_distance or names)
    budgets = evaluation.budgets(attack, knowledge)
    if not budgets:
        return float("inf")
    if evaluation.norm_of(attack) == distance:
        return budgets[-1]
    farthest = evaluation.farthest(attack, distance=distance, knowledge=knowledge)
    return farthest if np.isfinite(farthest) else 0.0  # every example is misclassified, so none was attacked


@dataclass(frozen=True)
class Search:
    """Where a curve is exact; elsewhere it is an upper bound on accuracy."""

    nearest: bool  # an attack searched for the nearest adversarial example in this distance: exact everywhere
    budgets: tuple[float, ...]  # the budgets in this distance that were attacked, ascending: exact there

    @property
    def nowhere(self) -> bool:
        """Whether no attack searched this distance."""
        return not self.nearest and not self.budgets


def searched(
    evaluation: Evaluation, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive"
) -> Search:
    """Return where an attack, or any of them (None), searched a distance; arguments as in `attacked_to`."""
    evaluation.least_distances(attack, distance=distance, knowledge=knowledge)  # checks the arguments
    names = [name for name in evaluation.named(attack, knowledge) if evaluation.norm_of(name) == distance]
    each = [evaluation.budgets(name, knowledge) for name in names]
    return Search(any(not budgets for budgets in each), tuple(sorted({b for budgets in each for b in budgets})))


def known_at(
    evaluation: Evaluation, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive",
    at: Iterable[float],
) -> np.ndarray:  # fmt: skip
    """Return where `Evaluation.curve` is known: (len(at),) bool, attacked that far or every example broken before."""
    end = attacked_to(evaluation, attack, distance=distance, knowledge=knowledge)
    grid, all_broken = _read_at(at, evaluation.reach(attack, distance=distance, knowledge=knowledge))
    return all_broken | (grid <= end + TOLERANCE)


def exact_at(
    evaluation: Evaluation, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive",
    at: Iterable[float],
) -> np.ndarray:  # fmt: skip
    """Return where `Evaluation.curve` is exact: (len(at),) bool, searched there or every example broken before."""
    search = searched(evaluation, attack, distance=distance, knowledge=knowledge)
    grid, all_broken = _read_at(at, evaluation.reach(attack, distance=distance, knowledge=knowledge))
    stops = np.asarray((0.0, *search.budgets))  # at 0 a curve needs no attack
    return search.nearest | all_broken | (np.abs(grid[:, None] - stops) <= TOLERANCE).any(axis=1)


def _read_at(at: Iterable[float], reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances as an array, and where every example is broken within them."""
    grid = np.asarray(list(at), dtype=float)
    return grid, grid >= reach.max()
