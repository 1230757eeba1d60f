"""The start of a training that is resumed: its length, and the results that the run had before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustlit import Evaluation
from robustlit.experiment.resume_training import set_results_aside
from robustlit.results.table import EvaluationError
from robustlit.training import RobustClassifier

pytestmark = pytest.mark.faults
Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
# Three steps an epoch.
TINY = ["train", "recipe=standard", "model=small_cnn", "data.train_size=300", "data.batch_size=100",
        "data.val_size=100", "data.test_size=20", "validation_attack=null", "trainer.precision=32-true"]  # fmt: skip
SWEEP = ["sweep.attacks.pgd.steps=2", "sweep.attacks.bim.steps=2", "sweep.grid.linf=[0.1]"]


def stopped(self: RobustClassifier, *given: Any) -> None:
    raise OSError("stopped here")


def test_a_finished_run_that_is_trained_longer_loses_no_results_and_shows_none(
    run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, *SWEEP, "logger=none", "schedule=null", "name=x", "resume=auto"]
    assert run(*words, "trainer.max_epochs=1") == 0
    folder, kept = tmp_path / "runs" / "x", tmp_path / "runs" / "x" / "results_of_step_3"
    before = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(RobustClassifier, "validation_step", stopped)
        assert run(*words, "trainer.max_epochs=2") == 1
    assert f"its results so far are kept in {kept}" in capsys.readouterr().err
    moved = {name for name in before if name.parts[0] in ("results.json", "model_card.md", "evaluation")}
    assert {Path("evaluation/examples.parquet"), Path("evaluation/curves_l2.csv"), Path("model_card.md")} < moved
    assert {name for name in before if not (folder / name).exists()} == moved
    assert all((kept / name).read_bytes() == before[name] for name in moved)
    assert Evaluation.load(kept).n == 20
    with pytest.raises(EvaluationError):
        Evaluation.load(folder)
    assert run("compare", "runs/x") == 1
    assert "was not finished" in capsys.readouterr().err
    # It ends like any other run, and what is kept stays.
    assert run(*words, "trainer.max_epochs=2") == 0
    assert Evaluation.load(folder).n == 20
    assert (kept / "results.json").read_bytes() == before[Path("results.json")]
    assert [place.name for place in folder.glob("results_of_step_*")] == ["results_of_step_3"]


def test_results_are_set_aside_as_often_as_there_are_some(tmp_path: Path) -> None:
    assert set_results_aside(tmp_path, 5) is None
    for name in ("results_of_step_5", "results_of_step_5-2"):
        (tmp_path / "evaluation" / "parts").mkdir(parents=True)  # a sweep that was stopped has no results.json yet
        assert set_results_aside(tmp_path, 5) == tmp_path / name
        assert [place.name for place in (tmp_path / name).iterdir()] == ["evaluation"]


def test_a_resume_that_is_refused_leaves_no_part_of_a_wandb_run(run: Run, tmp_path: Path, capsys: Capture) -> None:
    words = [*TINY, "sweep=none", "callbacks.images=null", "name=x", "resume=auto"]
    assert run(*words, "logger=wandb", "trainer.max_epochs=1") == 0
    folder = tmp_path / "runs" / "x"
    config, before = (folder / "config.yaml").read_text(), {*folder.rglob("*")}
    assert len([*folder.glob("wandb/offline-run-*")]) == 1
    assert run(*words, "logger=wandb", "trainer.max_epochs=2") == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert "the checkpoint's schedule ends after 3 steps, and this run would take 6" in line
    assert {*folder.rglob("*")} == before
    assert (folder / "config.yaml").read_text() == config
