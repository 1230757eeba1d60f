"""Folders that are no run, and damaged files, are refused with the way out."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import data_of, made_evaluation

from robustlit.comparison import ComparisonError, compare, compared
from robustlit.comparison.export import as_csv

Make = Callable[..., Path]


def test_folders_that_are_no_run(make: Make, tmp_path: Path) -> None:
    run, foreign, unfinished = make("a"), tmp_path / "foreign", tmp_path / "unfinished"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "config.yaml").write_text("eps: 0.3\n")
    for folder, error in (
        (tmp_path / "nowhere", "there is no folder .*nowhere; give run folders"),
        (foreign, r"foreign is no run of robustlit: it has neither results\.json nor evaluation/examples\.parquet"),
        (unfinished, "unfinished was not finished: .*robustlit evaluate .*unfinished"),
        (run / "results.json", r"results\.json is a file; give the run's folder"),
    ):
        with pytest.raises(ComparisonError, match=error):
            compare([run, folder])


def test_the_same_run_twice(make: Make) -> None:
    run = make("a")
    with pytest.raises(ComparisonError, match=re.escape(f"{run} was given twice; give each run once")):
        compare([run, run])
    for other in (run / ".." / "a", run / "evaluation"):
        with pytest.raises(ComparisonError, match="are one run; give each run once"):
            compare([run, other])
    with pytest.raises(ComparisonError, match="at least one run folder"):
        compare([])
    with pytest.raises(ComparisonError, match="must be a list"):
        compare(str(run))


def test_runs_of_the_same_name_show_their_folders(make: Make) -> None:
    folders = [make("a", results={"name": "x"}), make("b", results={"name": "x"})]
    names = [run["name"] for run in data_of(compare(folders))["runs"]]
    assert names == [f"x ({folder})" for folder in folders]
    lines = csv.DictReader(as_csv(compared(folders)).splitlines())
    assert [line["run"] for line in lines][:2] == names


def test_an_evaluation_saved_from_python_is_a_run(make: Make, labels: np.ndarray, tmp_path: Path) -> None:
    saved = made_evaluation(np.arange(40), labels[:40], seed=7).save(tmp_path / "mine")
    mine = data_of(compare([make("a"), saved]))["runs"][1]
    assert (mine["name"], mine["budget"], mine["recipe"]) == ("mine", {"norm": "linf", "eps": 0.4}, None)
    assert mine["worst"] is not None


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"knowledge": None, "l1": None}, "lacks the columns knowledge, l1; it is of another version"),
        ({"label": "seven"}, "the column 'label' must hold int64, it holds"),
        ({"success": 1.0}, "the column 'success' must hold bool, it holds float64"),
        ({"knowledge": "whitebox"}, "knowledge must be among greybox, adaptive, blackbox, got 'whitebox'"),
        ({"norm": "l7"}, r"norm must be among .*, got 'l7'; attack it again \(robustlit evaluate CHECKPOINT\)"),
        ({"label": "numbers"}, "an example has two labels"),
    ],
)
def test_a_table_of_another_version(make: Make, changes: dict[str, Any], error: str) -> None:
    run = make("a")
    path = run / "evaluation" / "examples.parquet"
    table = pd.read_parquet(path)
    for column, value in changes.items():
        table[column] = np.arange(len(table)) if value == "numbers" else value
    table.drop(columns=[column for column, value in changes.items() if value is None]).to_parquet(path, index=False)
    with pytest.raises(ComparisonError, match=error) as refused:
        compare([run])
    assert str(run) in str(refused.value)
    assert "again (robustlit evaluate " in str(refused.value)
    assert "or leave " in str(refused.value)
    if "norm" in changes:
        (run / "checkpoints").mkdir()  # a training run has its own checkpoint
        with pytest.raises(ComparisonError, match=f"attack it again .robustlit evaluate {run}., or leave it out"):
            compare([run])


def test_a_table_that_is_empty(make: Make) -> None:
    run = make("a")
    path = run / "evaluation" / "examples.parquet"
    pd.read_parquet(path).iloc[:0].to_parquet(path, index=False)
    with pytest.raises(ComparisonError, match="the table of examples is empty"):
        compare([run])


@pytest.mark.parametrize(
    ("file", "held", "error"),
    [
        ("results.json", '{"name": ', "results.json is damaged"),
        ("results.json", "[1, 2]", "results.json is not of robustlit"),
        ("config.yaml", "a: [1,", "config.yaml is damaged"),
        ("config.yaml", "a: &a [*a]", "config.yaml is damaged"),
        ("config.yaml", "just a line", "config.yaml is not of robustlit"),
        ("evaluation/examples.parquet", "PAR1 no", "cannot read the evaluation"),
        ("evaluation/evaluation.json", "{", "cannot read the evaluation"),
        ("evaluation/evaluation.json", "[]", "evaluation.json is not of robustlit"),
        ("evaluation/verdict.json", '{"checks": 3}', "verdict.json is no verdict"),
        ("evaluation/verdict.json", '{"checks": [{"number": 1, "status": "fine"}]}', "is no verdict.*--verdict"),
    ],
)
def test_a_damaged_file_is_named(make: Make, file: str, held: str, error: str) -> None:
    run = make("a")
    (run / file).write_text(held)
    with pytest.raises(ComparisonError, match=error) as refused:
        compare([run])
    assert "\n" not in str(refused.value)
