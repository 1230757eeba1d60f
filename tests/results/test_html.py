"""Evaluations and verdicts show themselves in a notebook, with every name escaped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robustlit.results import FAIL, PASS, Check, Evaluation, EvaluationError, Verdict
from robustlit.results.table import COLUMNS


def made(**meta: object) -> Evaluation:
    values = {
        "label": [3, 1], "clean": [True, True], "success": [True, False], "attack": ["<i>", "<i>"],
        "eps": [8 / 255] * 2, "norm": ["linf"] * 2, "knowledge": ["adaptive"] * 2, "index": [0, 1],
    }  # fmt: skip
    columns = {name: np.asarray(values.get(name, [0.0, 0.0])) for name in COLUMNS}
    return Evaluation.from_columns(columns, {"complete": True, **meta})


def test_an_evaluation_is_a_table_of_its_figures() -> None:
    shown = made()._repr_html_()
    assert "Evaluation of 2 examples" in shown
    assert "&lt;i&gt;</td>" in shown
    assert "<i>" not in shown
    assert "linf 8/255</td>" in shown
    assert "50.00 %" in shown


def test_a_verdict_is_a_table_of_its_checks() -> None:
    checks = [Check(1, "a name", PASS, "x < y & z"), Check(13, "another", FAIL, "Square breaks 3")]
    shown = Verdict(checks, "quick", 10, "linf", 8 / 255, 0, 10, 0.1)._repr_html_()
    assert "linf 8/255): 1 of 2 checks fail (Square wins)" in shown
    assert "x &lt; y &amp; z</td>" in shown
    assert shown.count("<tr>") == 3


def test_classes_have_the_names_of_the_data_or_their_numbers(tmp_path: Path) -> None:
    named = made(class_names=["airplane", "car", "bird"])
    assert [named.class_name(k) for k in (1, 3, -1)] == ["car", "3", "-1"]
    assert made().class_name(1) == "1"
    named.save(tmp_path)
    assert Evaluation.load(tmp_path).class_name(2) == "bird"
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"class_names": [1, {}]}))
    with pytest.raises(EvaluationError, match="class_names must be a list of text"):
        Evaluation.load(tmp_path)
