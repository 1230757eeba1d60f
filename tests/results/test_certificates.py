"""What certificates proved, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from robustlit.results.certificates import Certificates


def test_the_larger_radius_counts_and_a_misclassified_example_is_robust_nowhere() -> None:
    radii = {"ibp": [0.1, 0.0, 0.3, 0.0], "crown": [0.2, 0.0, 0.1, 0.0]}
    rows = [
        (index, 7, index != 3, name, "linf", radii[name][index], 3, 10 * index)
        for name in radii
        for index in (2, 0, 3, 1)
    ]
    columns = ["index", "label", "clean", "certificate", "norm", "radius", "forwards", "backwards"]
    found = Certificates(pd.DataFrame(rows, columns=columns))
    assert found.radii(norm="linf").tolist() == [0.2, 0.0, 0.3, float("-inf")]
    for eps, robust in ((0.0, 3), (0.1, 2), (0.2, 2), (0.21, 1), (0.3, 1), (0.31, 0)):
        assert (found.accuracy(eps=eps).correct, found.accuracy(eps=eps).n) == (robust, 4)
    assert found.accuracy(eps=0.2, certificate="ibp").correct == 1
    curve = found.curve()
    assert curve["distance"].tolist() == [0.0, 0.2, 0.3]
    assert curve["accuracy"].tolist() == [0.75, 0.5, 0.25]
    assert found.passes("ibp") == pytest.approx(18)
