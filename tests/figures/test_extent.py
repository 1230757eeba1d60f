"""How far attacks searched a distance, and where curves over it are exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from robustlit.figures import Search, attacked_to, exact_at, knob_settings, known_at, searched
from robustlit.results import Evaluation, EvaluationError

Make = Callable[..., Evaluation]


def test_a_budget_attack_searches_up_to_its_largest_budget(table: Make) -> None:
    evaluation = table([(0, "pgd", 0.1, None), (0, "pgd", 0.3, None), (1, "pgd", 0.1, 0.05), (1, "pgd", 0.3, 0.05)])
    assert attacked_to(evaluation, "pgd", distance="linf") == 0.3
    assert attacked_to(evaluation, "pgd", distance="l2") == pytest.approx(6.0)  # the failed attempt at 0.3
    known = known_at(evaluation, "pgd", distance="linf", at=[0, 0.05, 0.3, 0.31, 1.0])
    assert known.tolist() == [True, True, True, False, False]


def test_a_curve_is_known_everywhere_once_every_example_is_broken(table: Make) -> None:
    evaluation = table([(k, "pgd", 0.3, 0.1 * (k + 1)) for k in range(2)])
    assert known_at(evaluation, "pgd", distance="linf", at=[0.1, 0.9]).all()


def test_where_every_example_is_misclassified_no_distance_was_attacked(table: Make) -> None:
    assert attacked_to(table([(k, "pgd", 0.3, 0.0) for k in range(3)]), "pgd", distance="l2") == 0


def test_the_worst_case_is_known_as_far_as_the_attacks_in_that_distance(mixed: Evaluation) -> None:
    assert attacked_to(mixed, distance="linf") == 0.3
    assert attacked_to(mixed, distance="l2") == np.inf
    assert attacked_to(mixed, distance="l0") == np.inf  # no attack in that very distance


@pytest.mark.parametrize(
    ("attack", "distance", "expected"),
    [
        ("pgd", "linf", Search(False, (0.1, 0.3))),
        ("pgd", "l2", Search(False, ())),
        ("nearest_l2", "l2", Search(True, ())),
        ("nearest_l2", "linf", Search(False, ())),
        (None, "linf", Search(False, (0.1, 0.2, 0.3))),
        (None, "l2", Search(True, ())),
        (None, "l0", Search(False, ())),
    ],
)
def test_where_an_attack_searched(mixed: Evaluation, attack: str | None, distance: str, expected: Search) -> None:
    assert searched(mixed, attack, distance=distance) == expected
    assert expected.nowhere == (expected == Search(False, ()))


@pytest.mark.parametrize(
    ("attack", "distance", "at", "expected"),
    [
        ("pgd", "linf", [0.0, 0.05, 0.1, 0.1 + 5e-7, 0.2, 0.31], [True, False, True, True, False, False]),
        (None, "linf", [0.0, 0.05, 0.1, 0.1 + 5e-7, 0.2, 0.31], [True, False, True, True, True, False]),
        ("nearest_l2", "linf", [0.0, 0.05, 0.31], [True, False, False]),
        ("nearest_l2", "linf", [0.39, 0.4], [False, True]),  # every example is broken
        ("nearest_l2", "l2", [0.0, 0.05, 0.31], [True, True, True]),
    ],
)
def test_a_curve_is_exact_where_an_attack_searched(
    mixed: Evaluation, attack: str | None, distance: str, at: list[float], expected: list[bool]
) -> None:
    assert exact_at(mixed, attack, distance=distance, at=at).tolist() == expected


@pytest.mark.parametrize("ask", [attacked_to, searched, knob_settings])
def test_unknown_attacks_and_distances_are_refused(mixed: Evaluation, ask: Callable[..., object]) -> None:
    with pytest.raises(EvaluationError, match="no attack named 'square'"):
        ask(mixed, "square")
    with pytest.raises(EvaluationError, match="nothing was run with knowledge 'greybox'"):
        ask(mixed, "pgd", knowledge="greybox")
    with pytest.raises(EvaluationError, match="distance must be one of"):
        ask(mixed, "pgd", distance="l3")
