"""Wilson intervals compared with scipy, and accuracies with their counts."""

from __future__ import annotations

import copy
import pickle

import pytest
from scipy.stats import binomtest

from robustlit.results import Accuracy, wilson_interval


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 3), (17, 40), (948, 1000), (9634, 10000)]
)
def test_wilson_interval_is_that_of_scipy(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 40, 333, 10_000])
def test_the_ends_are_exact_and_the_proportion_lies_inside(n: int) -> None:
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0
    for correct in range(0, n + 1, max(1, n // 9)):
        low, high = wilson_interval(correct, n)
        assert 0 <= low <= correct / n <= high <= 1
        assert low < high


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0), (1, -1), (float("nan"), 5)])
def test_impossible_counts_are_refused(correct: int, n: int) -> None:
    for refuse in (wilson_interval, Accuracy):
        with pytest.raises(ValueError, match=r"0 <= correct <= n.*n="):
            refuse(correct, n)


def test_an_accuracy_is_a_float_that_prints_its_interval() -> None:
    accuracy = Accuracy(3, 8)
    assert isinstance(accuracy, float)
    assert 2 * accuracy + 0.25 == 1.0
    assert (accuracy, accuracy.correct, accuracy.n, accuracy.interval) == (0.375, 3, 8, wilson_interval(3, 8))
    low, high = wilson_interval(948, 1000)
    assert str(Accuracy(948, 1000)) == f"94.80 % [{100 * low:.2f}, {100 * high:.2f}]"
    assert f"{Accuracy(948, 1000)}".startswith("94.80 % [93.2")


def test_an_accuracy_survives_copies_and_pickles() -> None:
    accuracy = Accuracy(948, 1000)
    for other in (copy.copy(accuracy), copy.deepcopy(accuracy), pickle.loads(pickle.dumps(accuracy))):
        assert type(other) is Accuracy
        assert (other, other.correct, other.n, other.interval) == (accuracy, 948, 1000, accuracy.interval)
