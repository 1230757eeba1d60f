"""How far an attack looked, and where: elsewhere a curve only tells that nobody tried."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from robustlit.results.evaluation import Evaluation
from robustlit.results.table import DISTANCES, TOLERANCE


def attacked_to(
    evaluation: Evaluation, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive"
) -> float:
    """The distance up to which images were attacked; beyond it the accuracy is not known.

    A budget attack looked as far as its largest budget, and in any other distance as far as the farthest image that it
    handed back, witness or failed attempt. A minimal attack looked without a bound: what it did not break, it broke at
    no distance.

    Args:
        attack: one attack; None takes the worst case, known as far as any attack of this very distance looked (where
            there is none, as far as any attack did).
        distance: l0, l1, l2 or linf.
        knowledge: greybox, adaptive or blackbox.

    Returns:
        A distance in pixel units, or inf.

    Raises:
        EvaluationError: an attack or knowledge that was not run, or no such distance.
    """
    evaluation.least_distances(attack, distance=distance, knowledge=knowledge)  # says so
    if attack is None:
        names = [name for name, known in evaluation.runs if known == knowledge]
        of_distance = [name for name in names if evaluation.norm_of(name) == distance]
        reached = [
            attacked_to(evaluation, name, distance=distance, knowledge=knowledge) for name in of_distance or names
        ]
        return max(reached, default=0.0)
    budgets = evaluation.budgets(attack, knowledge)
    if not budgets:
        return float("inf")
    if evaluation.norm_of(attack) == distance:
        return budgets[-1]
    farthest = evaluation.farthest(attack, distance=distance, knowledge=knowledge)
    return farthest if np.isfinite(farthest) else 0.0  # nothing was classified right, so nothing was attacked


def known_at(
    evaluation: Evaluation,
    attack: str | None = None,
    *,
    distance: str = "l2",
    knowledge: str = "adaptive",
    at: Iterable[float],
) -> np.ndarray:
    """At which distances `Evaluation.curve` is known: attacked that far, or every example broken before.

    Args:
        attack, distance, knowledge: as in `attacked_to`.
        at: distances in pixel units.

    Returns:
        (len(at),) bool.
    """
    grid = np.asarray(list(at), dtype=float)
    last = evaluation.reach(attack, distance=distance, knowledge=knowledge).max()
    end = attacked_to(evaluation, attack, distance=distance, knowledge=knowledge)
    return np.asarray((grid <= end + TOLERANCE) | (grid >= last))


@dataclass(frozen=True)
class Search:
    """Where a curve is what attacks found; everywhere else it bounds the accuracy from above.

    Args:
        nearest: an attack looked for the nearest adversarial in the very distance of the curve, so it is exact as far
            as it goes.
        budgets: in that distance that were attacked, ascending: there it is exact.
    """

    nearest: bool
    budgets: tuple[float, ...]

    @property
    def nowhere(self) -> bool:
        """Whether no attack searched this distance."""
        return not self.nearest and not self.budgets

    def exact(self, at: Iterable[float]) -> np.ndarray:
        """At which of the distances the curve is exact: (len(at),) bool. At 0 it needs no attack."""
        grid = np.asarray(list(at), dtype=float)
        stops = np.asarray((0.0, *self.budgets))
        return np.asarray(self.nearest | (np.abs(grid[:, None] - stops) <= TOLERANCE).any(axis=1))


def searched(
    evaluation: Evaluation, attack: str | None = None, *, distance: str = "l2", knowledge: str = "adaptive"
) -> Search:
    """Where an attack searched a distance: everywhere if it is minimal in it, at its budgets if it has some in it.

    Args:
        attack: one attack; None takes the worst case, of all that ran with this knowledge.
        distance, knowledge: as in `attacked_to`.

    Raises:
        EvaluationError: an attack or knowledge that was not run, or no such distance.
    """
    names = [name for name, known in evaluation.runs if known == knowledge and attack in (None, name)]
    if not names or distance not in DISTANCES:
        evaluation.least_distances(attack, distance=distance, knowledge=knowledge)  # says so
    each = [evaluation.budgets(name, knowledge) for name in names if evaluation.norm_of(name) == distance]
    return Search(any(not budgets for budgets in each), tuple(sorted({b for budgets in each for b in budgets})))


def exact_at(
    evaluation: Evaluation,
    attack: str | None = None,
    *,
    distance: str = "l2",
    knowledge: str = "adaptive",
    at: Iterable[float],
) -> np.ndarray:
    """At which distances `Evaluation.curve` is what attacks found: where they searched, or had broken every example.

    Args:
        attack, distance, knowledge: as in `searched`.
        at: distances in pixel units.

    Returns:
        (len(at),) bool.
    """
    grid = np.asarray(list(at), dtype=float)
    last = evaluation.reach(attack, distance=distance, knowledge=knowledge).max()
    search = searched(evaluation, attack, distance=distance, knowledge=knowledge)
    return np.asarray(search.exact(grid) | (grid >= last))
