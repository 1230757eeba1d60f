"""An evaluation that has every kind of attack."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from robustlit.results import Evaluation


@pytest.fixture
def mixed(table: Callable[..., Evaluation]) -> Evaluation:
    """Two attacks with budgets in L-inf, one of them with two, and an attack that is minimal in L2."""
    reach = (0.05, 0.15, 0.25, 0.35)
    rows = [(k, "pgd", eps, r if r <= eps else None) for k, r in enumerate(reach) for eps in (0.1, 0.3)]
    rows += [(k, "fgsm", 0.2, 0.2 if k == 0 else None) for k in range(4)]
    minimal = table([(k, "nearest_l2", float("nan"), 0.1 * (k + 1)) for k in range(4)], norm="l2")
    return Evaluation(pd.concat([table(rows).to_frame(), minimal.to_frame()]))
