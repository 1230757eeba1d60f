"""Which examples the verdict looks at hardest: those that the sweep broke soonest beyond the budget."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from robustlit.evaluation import Evaluation
from robustlit.evaluation.verdict.probe import nearest_of, standing_of

Make = Callable[..., Evaluation]
BROKEN_AT = {0: 0.1, 1: 0.2, 2: 0.36, 3: 0.36, 4: 0.355, 5: 0.6, 6: 0.6, 7: None, 8: None}


@pytest.fixture
def swept(table: Make) -> Evaluation:
    """Nine examples under PGD at .3, .4 and .6; the last of ten is misclassified."""
    rows = [(k, "pgd", eps, at) for k, at in BROKEN_AT.items() for eps in (0.3, 0.4, 0.6)]
    frame = table([*rows, (9, "pgd", 0.3, 0.0)]).to_frame()
    frame.loc[frame["index"] == 9, "clean"] = False
    return Evaluation(frame, {"complete": True})


def test_who_fell_soonest_beyond_the_budget_stands_for_all(swept: Evaluation) -> None:
    assert standing_of(swept, "linf", 0.3) == {k: k > 1 for k in BROKEN_AT}
    assert nearest_of(swept, "linf", 0.3, 10, 2, seed=0) == ([2, 3, 4], 9)
    assert nearest_of(swept, "linf", 0.3, 10, 3, seed=0) == ([2, 3, 4], 9)
    assert nearest_of(swept, "linf", 0.3, 10, 4, seed=0) == ([2, 3, 4, 5, 6], 9)
    assert nearest_of(swept, "linf", 0.3, 10, 100, seed=0) == ([2, 3, 4, 5, 6, 7, 8], 9)


def test_a_part_of_them_stands_for_as_large_a_part(swept: Evaluation) -> None:
    drawn = [nearest_of(swept, "linf", 0.3, 2, 3, seed=seed) for seed in range(20)]
    assert {stands_for for _, stands_for in drawn} == {6}  # two of three
    assert all(len(set(chosen)) == 2 and set(chosen) < {2, 3, 4} for chosen, _ in drawn)
    assert {k for chosen, _ in drawn for k in chosen} == {2, 3, 4}
    assert nearest_of(swept, "linf", 0.3, 0, 3, seed=0) == ([], 0)


def test_a_single_budget_tells_nobody_apart(table: Make) -> None:
    single = table([(k, "pgd", 0.3, 0.1 if k < 3 else None) for k in range(10)])
    assert nearest_of(single, "linf", 0.3, 10, 2, seed=0) == ([3, 4, 5, 6, 7, 8, 9], 10)


def test_attacks_of_another_norm_or_that_knew_less_tell_nothing(swept: Evaluation) -> None:
    frame = swept.to_frame()
    near_8 = frame[frame["index"] == 8].assign(success=True, linf=0.31, eps=0.4)
    for change in ({"attack": "ddn", "norm": "l2"}, {"knowledge": "greybox"}):
        others = frame.assign(success=False, **change)
        evaluation = Evaluation(pd.concat([frame, others[others["index"] != 8], near_8.assign(**change)]))
        chosen, _ = nearest_of(evaluation, "linf", 0.3, 10, 3, seed=0)
        assert chosen == [2, 3, 4]
