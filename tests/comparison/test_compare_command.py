"""`robustlit compare`: its output, its exit codes, and that an error leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[..., Path]
Run = Callable[..., int]


def test_it_writes_the_page(make: Make, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(make("a")), str(make("b"))
    beside = str(tmp_path / "runs" / "multirun.yaml")  # Hydra leaves it there, and runs/* names it
    Path(beside).write_text("hydra: {}\n")
    assert run("compare", a, b, beside) == 0
    assert (tmp_path / "compare.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out.startswith("2 runs compared: compare.html (")
    assert run("compare", a, "--out", "one.html") == 0
    assert run("compare", "--out=two.html", a) == 0
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_an_error_is_one_line_and_leaves_nothing(
    make: Make, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(make("a", range(20))), str(make("b", range(30)))
    for arguments, code, error in (
        ((a, b), 1, "tested on different examples"),
        ((f"{tmp_path}/nowhere",), 1, "there is no folder"),
        ((), 2, "which runs?"),
        ((a, "--output=x.html"), 2, "--output=x.html"),
        ((a, "--out"), 2, "--out"),
        ((a, "--out", f"{a}/results.json"), 1, "no page of robustlit compare"),
    ):
        assert run("compare", *arguments) == code
        *usage, line = capsys.readouterr().err.splitlines()
        assert "error: " in line
        assert error in line
        assert not usage or code == 2
    assert [f.name for f in tmp_path.iterdir()] == ["runs"]
    assert run("compare", a, b, "--intersect") == 0
