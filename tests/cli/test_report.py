"""`robustlit report`: what is left to compute, figures drawn again from their JSON, wrong arguments in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from robustlit.cli import report
from robustlit.experiment.reproduction import Reproduction
from robustlit.figures.stored import load_record, table_of

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
STORED = Path(__file__).parents[2] / "docs" / "report"


def test_the_figures_are_listed_with_what_they_need(run: Run, capsys: Capture) -> None:
    assert run("report") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["7", "8", "10", "11", "11b", "14", "17", "18", "9.1"]
    assert "4 of 4 runs to compute: base, plain, jumprelu, jumprelu_attacked" in lines[6]
    assert not Path("report").exists()


@pytest.mark.parametrize("file", sorted(STORED.glob("figure_*.json")), ids=lambda file: file.stem)
def test_a_committed_figure_is_drawn_again_in_seconds(file: Path, run: Run, capsys: Capture, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path)
    assert run("report", file.stem.removeprefix("figure_"), "--redraw", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "\n".join(table_of(load_record(file))) in printed
    assert (tmp_path / f"{file.stem}.png").stat().st_size > 10_000


def test_runs_are_computed_once_and_a_failure_stops(
    run: Run, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def compute(command: list[str]) -> int:
        started.append(command)
        (folder,) = [word.partition("=")[2] for word in command if word.startswith("run_dir=")]
        if len(started) == 3:
            return 130
        Path(folder).mkdir(parents=True)
        (Path(folder) / "results.json").write_text(json.dumps({"seconds": {}}))
        return 0

    monkeypatch.setattr(report, "_computed", compute)
    assert run("report", "18", "--n", "10") == 130
    names = [part.name for part in Reproduction(Path("report"), 10, 1).parts("18")]
    assert names == ["base", "plain", "jumprelu", "jumprelu_attacked"]
    assert "jumprelu ended with 130: the same command goes on here" in capsys.readouterr().err
    started.clear()
    run("report", "18", "--n", "10")
    assert len(started) == 2  # the two that are left
    assert "[1/4] base: finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["12"], "there is no figure '12' of the report; there are 7, 8"),
        (["18", "--n", "0"], "--n and --few must be at least 1, got 0"),
        (["18", "--take", "base"], "--take takes NAME=RUN"),
        (["18", "--take", "base=none"], "there is no finished run at none"),
        (["--redraw", "--out", "none"], "none holds no figure_*.json"),
    ],
)
def test_wrong_arguments_are_one_line(run: Run, capsys: Capture, words: list[str], message: str) -> None:
    assert run("report", *words) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
