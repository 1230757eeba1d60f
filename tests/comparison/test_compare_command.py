"""robustlit compare: what it prints, its exit codes, and that nothing is left behind by an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robustlit import cli

Make = Callable[..., Path]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["robustlit", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    return run


def test_it_writes_the_page_and_says_where(
    make: Make, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make("a"), make("b")
    beside = tmp_path / "runs" / "multirun.yaml"  # what Hydra leaves there, and runs/* names
    beside.write_text("hydra: {}\n")
    assert command(a, b, beside) == 0
    assert (tmp_path / "compare.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out.startswith("2 runs compared: compare.html (")
    assert command(a, "--out", "one.html") == 0
    assert command(a, "--out=two.html") == 0
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_errors_are_one_line_and_leave_nothing(
    make: Make, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make("a", range(20)), make("b", range(30))
    for arguments, code, said in (
        ((a, b), 1, "tested on different examples"),
        ((a, tmp_path / "nowhere"), 1, "there is no folder"),
        ((), 2, "which runs?"),
        ((a, "--output=x.html"), 2, "takes --out FILE.html and --intersect, got '--output=x.html'"),
        ((a, "--out"), 2, "got no file after --out"),
        ((a, "--out", a / "results.json"), 1, "no page of robustlit compare"),
    ):
        assert command(*arguments) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1
    assert [f.name for f in tmp_path.iterdir()] == ["runs"]
    assert command(a, b, "--intersect") == 0
