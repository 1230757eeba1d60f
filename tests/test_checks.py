"""How values are written and checked."""

from __future__ import annotations

import numpy as np
import pytest

from robustlit.checks import budget_text, check_step_size, distinct_budgets, meant_levels
from robustlit.threat import check_eps


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"), (np.float32(2 / 255), "2/255"), (0.0313725, "8/255"), (0.5 / 255, "0.5/255"),
        (128 / 255, "128/255"), (300 / 255, "300/255"),
        (0.3, "0.3"), (0.2, "0.2"), (1.0, "1"), (0.0314, "0.0314"), (0.1, "0.1"), (0.05, "0.05"), (1.5, "1.5"),
        (0.75, "0.75"), (8 / 765, "0.01046"), (1e-6, "1e-06"), (0.123456, "0.1235"), (3, "3"),
    ],
)  # fmt: skip
def test_budgets_are_written_as_people_write_them(eps: float, text: str) -> None:
    assert budget_text(eps) == text


def test_budgets_that_differ_by_rounding_are_one() -> None:
    assert distinct_budgets([0.2, 8 / 255, float(np.float32(8 / 255)), 0.02, 0.0200000001, 0.0313725]) == [
        0.02, 8 / 255, 0.2
    ]  # fmt: skip
    assert distinct_budgets([0.10002, 0.10001]) == [0.10001, 0.10002]
    # Examples at the larger one would not count at the smaller.
    assert distinct_budgets([0.300002, 0.3]) == [0.3, 0.300002]
    assert distinct_budgets([3.00002, 3.0, 3 + 1e-7]) == [3.0, 3.00002]


def test_grey_levels_are_asked_about_where_they_are_likely() -> None:
    assert [meant_levels(value) for value in (8, 0.5, 256)] == ["; did you mean 8/255?", "; did you mean 0.5/255?", ""]
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\] pixel units, got 8; did you mean 8/255\?"):
        check_eps(8)
    with pytest.raises(ValueError, match=r"below 2 pixel units, got 2; did you mean 2/255\?"):
        check_step_size(2, None, "linf")
