"""Which attack and which examples a figure of images shows."""

from __future__ import annotations

import pytest

from robustlit.callbacks.quoted import across_classes


@pytest.mark.parametrize(
    ("labels", "count", "places"),
    [
        ([1, 1, 1, 0, 2], 3, [3, 0, 4]),  # one of each class, by class
        ([1, 1, 1, 0, 2], 4, [3, 0, 1, 4]),
        ([5, 5, 5], 2, [0, 1]),
        ([5, 5, 5], 9, [0, 1, 2]),
        ([*range(1000)], 4, [0, 333, 666, 999]),  # more classes than images: spread over them
        ([], 4, []),
    ],
)
def test_classes_take_turns(labels: list[int], count: int, places: list[int]) -> None:
    assert across_classes(labels, count) == places
