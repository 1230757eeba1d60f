"""The digest of a table depends on its values and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlit.results import Evaluation
from robustlit.results.table import COLUMNS, digest

Make = Callable[..., Evaluation]


@pytest.fixture
def rows(table: Make) -> pd.DataFrame:
    """Two attacks on four examples, one of them without a budget."""
    found = [(k, a, e, r) for a, e in (("fgsm", 0.3), ("deepfool", float("nan"))) for k, r in enumerate((0.1, 0, 0.2))]
    return table([*found, (3, "fgsm", 0.3, None)]).to_frame()


def test_it_depends_on_the_values_alone(rows: pd.DataFrame, tmp_path: Path) -> None:
    # Every version of pandas must give this one: verdicts lie beside tables for years.
    assert digest(rows) == "v1:ed0bbbc1cf518dba47adb5bf8a04c9469ba673cedba77435f817d7022ed25bb2"
    others = {
        "rows in another order": rows.sample(frac=1, random_state=1),
        "columns in another order": rows[list(COLUMNS)[::-1]],
        "another column": rows.assign(mine=1),
        "text as objects": rows.astype(dict.fromkeys(("attack", "knowledge", "norm"), object)),
        "text as categories": rows.astype(dict.fromkeys(("attack", "knowledge", "norm"), "category")),
        "text as Arrow's": rows.astype(dict.fromkeys(("attack", "knowledge", "norm"), "string[pyarrow]")),
        "smaller numbers": rows.astype({"index": "int32", "label": "uint8", "eps": rows["eps"].dtype}),
        "a zero below zero": rows.assign(linf=rows["linf"].where(rows["linf"] != 0, -0.0)),
        "another NaN": rows.assign(eps=np.where(rows["eps"].isna(), -np.float64("nan"), rows["eps"])),
    }
    Evaluation(rows, {}).save(tmp_path)
    others["from its file"] = Evaluation.load(tmp_path).table
    for what, other in others.items():
        assert digest(other) == digest(rows), what


@pytest.mark.parametrize("column", list(COLUMNS))
def test_any_value_changes_it(rows: pd.DataFrame, column: str) -> None:
    old = rows[column].iloc[2]
    new: Any = f"{old}x" if isinstance(old, str) else not old if COLUMNS[column] == "bool" else old + 1
    if column == "eps":
        new = old + 1e-12
    values = rows[column].tolist()
    values[2] = new
    assert digest(rows.assign(**{column: pd.Series(values).astype(COLUMNS[column])})) != digest(rows)


def test_missing_and_swapped_rows_change_it(rows: pd.DataFrame) -> None:
    assert digest(rows.iloc[1:]) != digest(rows)
    assert digest(pd.concat([rows, rows.iloc[:1]])) != digest(rows)
    swapped = rows.assign(success=np.roll(rows["success"].to_numpy(), 1))
    assert digest(swapped) != digest(rows)
    renamed = rows.assign(attack=rows["attack"].map({"fgsm": "deepfool", "deepfool": "fgsm"}))
    assert digest(renamed) != digest(rows)


def test_the_former_name_of_worst_case_does_not_change_it(rows: pd.DataFrame) -> None:
    former, current = (rows.assign(attack=rows["attack"].replace("fgsm", name)) for name in ("ensemble", "worst_case"))
    assert digest(former) == digest(current) != digest(rows)
    both = former.assign(attack=former["attack"].replace("deepfool", "worst_case"))
    assert digest(both) == digest(both.iloc[::-1]) != digest(former)
