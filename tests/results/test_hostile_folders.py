"""Files of a run folder that come from a stranger."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from robustlit.comparison.origin import again
from robustlit.comparison.runs import ComparisonError, Run, read_run
from robustlit.results.evaluation import EvaluationError
from robustlit.results.files import read_json, read_yaml
from robustlit.results.table import TABLE, read_table
from robustlit.results.verdict import Verdict

pytestmark = pytest.mark.faults
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(60))
FILES = {
    "aliases": BOMB,
    "alias of itself": "a: &a [*a]",
    "merge": "a: &a {b: 1}\nc:\n  <<: *a",
    "python": "a: !!python/object/apply:os.mkdir [planted]",
    "tag": "a: !!binary aGVsbG8=",
    "deep": "[" * 100_000,
    "huge": "a: " + "x" * 9_000_000,
    "not a number": f"a: {'9' * 5000}",
    "no date": "a: 2001-99-99",
}


@pytest.mark.parametrize("name", FILES)
def test_a_yaml_file_that_no_run_writes(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(FILES[name])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"."):
        read_yaml(tmp_path / "config.yaml")
    with pytest.raises(ComparisonError, match=r"config\.yaml is damaged") as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value)
    assert not Path("planted").exists()


def test_a_json_file_that_no_run_writes(tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    for content in ("[" * 100_000, "9" * 5000, '"' + "x" * 9_000_000 + '"', "\ud800".encode("utf-8", "surrogatepass")):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=r"."):
            read_json(file)
        with pytest.raises(ValueError, match="is no verdict of this version"):
            Verdict.read(file)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "results.json")


def test_a_table_that_unpacks_to_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustlit.results.table._MOST_ROWS", 1000)
    pd.DataFrame({"index": [0] * 1001}).to_parquet(tmp_path / TABLE)
    (tmp_path / "evaluation.json").write_text(json.dumps({}))
    with pytest.raises(EvaluationError, match="1001 rows"):
        read_table(tmp_path)


def test_figures_are_not_written_through_links(tmp_path: Path) -> None:
    from robustlit.figures.from_folders import _check_links  # the rest of the way needs a table

    target = tmp_path / "mine"
    target.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation").symlink_to(target)
    with pytest.raises(EvaluationError, match="is a link"):
        _check_links(tmp_path / "run" / "evaluation")
    (target / "curves_l2.png").symlink_to(tmp_path / "precious")
    with pytest.raises(EvaluationError, match="is a link"):
        _check_links(target)


@pytest.mark.parametrize(
    "command",
    ["robustlit evaluate x; rm -rf /", "robustlit evaluate $(id)", "robustlit evaluate x | sh", "a evaluate 'x"],
)
def test_a_stored_command_is_one_command(command: str, tmp_path: Path) -> None:
    shown = str(again(Run(tmp_path, "x", {}, {}, command, None, None)))
    assert not any(f" {sign}" in shown for sign in ("|", "$(", "&")), shown
    assert "x; " not in shown
