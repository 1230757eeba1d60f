"""Resuming: what ckpt_path may be, and which runs cannot be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustlit.experiment.run_folder import with_label

Run = Callable[..., int]
TINY = ["recipe=standard", "model=small_cnn", "data.train_size=1500", "data.batch_size=500", "data.val_size=100",
        "data.test_size=20", "validation_attack.steps=1", "sweep=none", "logger=none"]  # fmt: skip


def last(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


@pytest.mark.slow
def test_a_run_folder_means_its_last_checkpoint(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "mine"
    assert run("train", *TINY, "schedule=null", "trainer.max_epochs=1", "name=mine") == 0
    for epochs, place in ((2, "runs/mine"), (3, "runs/mine/checkpoints/")):
        assert run("train", *TINY, "schedule=null", f"trainer.max_epochs={epochs}", f"ckpt_path={place}") == 0
        assert last(folder) == 3 * epochs
    assert [f.name for f in (tmp_path / "runs").iterdir()] == ["mine"]
    assert "max_epochs: 3" in (folder / "config.yaml").read_text()
    (tmp_path / "runs" / "empty").mkdir()
    assert run("train", *TINY, "ckpt_path=runs/empty") == 1
    assert "runs/empty is a folder without checkpoints/last.ckpt" in capsys.readouterr().err


@pytest.mark.slow
def test_a_schedule_too_short_is_an_error(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "mine"
    assert run("train", *TINY, "trainer.max_epochs=1", "name=mine") == 0
    before = (folder / "config.yaml").read_text()
    capsys.readouterr()
    for more in ([], ["name=another"]):
        assert run("train", *TINY, "trainer.max_epochs=2", "ckpt_path=runs/mine", *more) == 1
        error = capsys.readouterr().err
        assert "the checkpoint's schedule ends after 3 steps, and this run would take 6" in error
        assert "its trainer.max_epochs was 1" in error
        assert "Traceback" not in error
    assert [f.name for f in (tmp_path / "runs").iterdir()] == ["mine"]
    assert (folder / "config.yaml").read_text() == before
    assert last(folder) == 3
    # As long as before, or shorter, it is resumed.
    assert run("train", *TINY, "trainer.max_epochs=1", "ckpt_path=runs/mine") == 0
    assert run("train", *TINY, "trainer.max_epochs=-1", "trainer.max_steps=2", "ckpt_path=runs/mine") == 0


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_the_folder_of_an_evaluation_names_what_was_evaluated(
    command: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    folder = tmp_path / "runs" / "a-eval"
    (folder / "evaluation").mkdir(parents=True)
    for origin, message in (
        ("runs/a", "error: runs/a-eval holds no checkpoint, it is an evaluation of runs/a: give that\n"),
        ("my_nets:build", "it is an evaluation of my_nets:build: see runs/a-eval/command.txt\n"),
        (None, "runs/a-eval is a folder without checkpoints/best.ckpt or last.ckpt"),
    ):
        (folder / "config.yaml").write_text(json.dumps({"ckpt_path": origin}))
        assert run(command, "runs/a-eval") == 1
        assert message in capsys.readouterr().err


def test_jobs_of_a_multirun_with_one_name_have_folders_of_their_own() -> None:
    given = {"name": "mine", "run_dir": None, "seed": 1}
    assert with_label(given, "seed_1") == {"name": "mine-seed_1", "run_dir": None, "seed": 1}
    assert with_label(given | {"run_dir": "there"}, "seed_1")["run_dir"] == "there-seed_1"
    assert with_label(given | {"name": "mine${seed}"}, "seed_1")["name"] == "mine${seed}"
    assert with_label(given, "") == given
