"""resume=auto: the same command again goes on where the last one stopped, whatever ended it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from robustlit.evaluation import Sweep
from robustlit.experiment.lock import FolderLock
from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.resume import Changes, Started, find_started, is_finished
from robustlit.training import RobustClassifier

pytestmark = pytest.mark.faults
Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
# Three steps an epoch, two epochs.
TINY = ["train", "recipe=standard", "model=small_cnn", "data.train_size=300", "data.batch_size=100",
        "data.val_size=100", "data.test_size=20", "data.eval_batch_size=10", "validation_attack.steps=1", "logger=none",
        "trainer.max_epochs=2", "trainer.precision=32-true", "callbacks.images=null", "sweep.attacks.pgd.steps=2",
        "sweep.attacks.bim.steps=2", "sweep.grid.linf=[0.1]", "checkpoint_minutes=1e-9"]  # fmt: skip
PLAIN = [*(word for word in TINY if not word.startswith("sweep")), "sweep=none"]


# A fork of this process could not train: in it, autograd refuses threads that earlier tests had started.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["robustlit.experiment.train"])
KILLED = """
import os, signal, sys
import torch
from {module} import {owner} as owner
from robustlit.cli import main

torch.set_num_threads({threads})  # other numbers of threads round differently
method, left = owner.{name}, [{time}]

def called(self, *given):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return method(self, *given)

owner.{name} = called
os.chdir({folder!r})
sys.argv = ["robustlit", *{words!r}]
main()
"""


def killed(*words: str, at: tuple[Any, str], time: int) -> None:
    """Run a command in a process of its own, which is killed at the n-th call of a method."""
    (owner, name), places = at, {"folder": os.getcwd(), "words": words, "time": time}
    code = KILLED.format(
        module=owner.__module__, owner=owner.__name__, name=name, threads=torch.get_num_threads(), **places
    )
    process = FORKED.Process(target=exec, args=(code, {}))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def weights(run: Path, name: str = "last") -> dict[str, Any]:
    read: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return read


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_been(run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run(*PLAIN, "name=whole") == 0
    killed(*PLAIN, "name=x", "resume=auto", at=(RobustClassifier, "training_step"), time=5)
    assert run(*PLAIN, "name=x", "resume=auto") == 0
    assert "after step 4 (last.ckpt)" in capsys.readouterr().err
    whole, found = tmp_path / "runs" / "whole", tmp_path / "runs" / "x"
    assert same(weights(whole)["state_dict"], weights(found)["state_dict"])
    assert same(weights(whole, "best")["state_dict"], weights(found, "best")["state_dict"])
    texts = {folder.name: (folder / "config.yaml").read_text() for folder in (whole, found)}
    assert texts["whole"].replace("whole", "x") == texts["x"]
    # It is finished: the same command touches nothing.
    before = {file: file.stat().st_mtime_ns for file in found.rglob("*")}
    assert run(*PLAIN, "name=x", "resume=auto") == 0
    assert "is finished, there is nothing to do" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in found.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "time", "line"),
    [
        ((RobustClassifier, "training_step"), 1, "has no checkpoint to resume from: the run starts anew in it"),
        ((RobustClassifier, "validation_step"), 12, "after step 5 (last.ckpt)"),
        ((Sweep, "attack_batch"), 2, "after step 6 (last.ckpt)"),
    ],
)
def test_a_run_killed_anywhere_has_the_table_of_a_whole_one(
    at: tuple[Any, str], time: int, line: str, run: Run, tmp_path: Path, capsys: Capture
) -> None:
    assert run(*TINY, "name=whole") == 0
    killed(*TINY, "resume=auto", at=at, time=time)  # no name: found again by its command
    assert run(*TINY, "resume=auto") == 0
    assert line in capsys.readouterr().err
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"whole", "standard"}
    whole, found = tmp_path / "runs" / "whole", tmp_path / "runs" / "standard"
    tables = [pd.read_parquet(folder / "evaluation" / "examples.parquet") for folder in (whole, found)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for name in ("best", "last"):
        a, b = (weights(folder, name) for folder in (whole, found))
        assert same(a["state_dict"], b["state_dict"])
        scores = [[s["best_model_score"] for s in c["callbacks"].values() if "best_model_score" in s] for c in (a, b)]
        assert scores[0] == scores[1]


@pytest.mark.slow
def test_what_a_command_changes_is_taken_or_refused(run: Run, tmp_path: Path, capsys: Capture) -> None:
    killed(*TINY, "name=x", "resume=auto", at=(Sweep, "attack_batch"), time=1)
    folder = tmp_path / "runs" / "x"
    config = (folder / "config.yaml").read_text()
    for change, message in (
        ("optimizer.lr=0.5", "was started with optimizer.lr=0.002, this command has optimizer.lr=0.5"),
        ("seed=3", "seed=0"),
        ("eps=0.1", "eps=0.3"),
        ("model.width=2.0", "model.width="),
        ("trainer.max_epochs=9", "the checkpoint's schedule ends after 6 steps"),
    ):
        words = [word for word in TINY if word.partition("=")[0] != change.partition("=")[0]]
        assert run(*words, "name=x", "resume=auto", change) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert (folder / "config.yaml").read_text() == config
    assert run(*TINY, "name=x", "resume=auto", "sweep.attacks.fgsm.eps=0.2") == 0
    assert "resume=auto goes on with sweep.attacks.fgsm.eps=0.2 (before: " in capsys.readouterr().err
    assert OmegaConf.load(folder / "config.yaml").sweep.attacks.fgsm.eps == 0.2
    assert run(*TINY, "name=x", "resume=auto", "sweep.attacks.fgsm.eps=0.1") == 1
    assert f"`robustlit evaluate {folder} KEY=VALUE`" in capsys.readouterr().err


def test_a_folder_that_is_in_use_or_is_no_run_is_refused(run: Run, tmp_path: Path, capsys: Capture) -> None:
    used, own = tmp_path / "runs" / "used", tmp_path / "runs" / "own"
    for folder in (used, own):
        folder.mkdir(parents=True)
    (own / "precious").touch()
    lock = FolderLock(used)
    assert run(*PLAIN, "name=used", "resume=auto") == 1
    assert "is in use by process" in capsys.readouterr().err
    lock.release()
    assert run(*PLAIN, "name=own", "resume=auto") == 1
    assert "exists already" in capsys.readouterr().err
    assert [file.name for file in own.iterdir()] == ["precious"]
    assert run(*PLAIN, "name=x", "resume=yes") == 1
    assert "resume must be auto or null, got yes" in capsys.readouterr().err


def test_a_run_without_a_name_is_found_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"run_dir": None, "name": None, "recipe": "trades"}
    for number, command in enumerate(
        ("python train.py recipe=trades seed=1", "robustlit train seed=2 recipe=trades"), 1
    ):
        folder = tmp_path / "runs" / ("trades" if number == 1 else f"trades-{number}")
        folder.mkdir(parents=True)
        (folder / "command.txt").write_text(f"{command}\n")
    (tmp_path / "runs" / "trades-wide").mkdir()
    found = {seed: find_started(recipe, f"python train.py recipe=trades seed={seed} resume=auto") for seed in (1, 2, 3)}
    assert found == {1: tmp_path / "runs" / "trades", 2: tmp_path / "runs" / "trades-2", 3: None}
    assert find_started(recipe, None) is None


def test_a_recipe_file_that_was_edited_leaves_the_run_its_own_values(capsys: Capture) -> None:
    stored = {"optimizer": {"lr": 0.1}, "sweep": {"seed": 0}, "name": "x", "gone": 1}
    now = {"optimizer": {"lr": 0.2}, "sweep": {"seed": 1}, "name": None, "new": 2}
    started = Started(Path("runs/x"), stored, None)
    changes = Changes.of(started, now, "robustlit train recipe=standard sweep.seed=1")
    assert changes.named == {"sweep.seed": (0, 1)}
    assert changes.applied(now)["optimizer"] == {"lr": 0.1}
    assert "keeps the run's optimizer.lr=0.1" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"runs/x was started with optimizer\.lr=0\.1"):
        Changes.of(started, now, "robustlit train recipe=standard optimizer.lr=0.2")
    with pytest.raises(ConfigError, match=r"runs/x is finished, with sweep\.seed=0"):
        changes.check_only_longer()


@pytest.mark.parametrize(
    ("results", "table", "finished"),
    [(None, True, False), ('{"clean": 1', True, False), ('{"clean": 1}', False, True), ('{"attacks": {}}', True, True),
     ('{"attacks": {}}', False, False), ('{"attacks": {}, "complete": false}', True, False)],
)  # fmt: skip
def test_a_run_is_finished_when_its_results_are_complete(
    results: str | None, table: bool, finished: bool, tmp_path: Path
) -> None:
    if results is not None:
        (tmp_path / "results.json").write_text(results)
    if table:
        (tmp_path / "evaluation").mkdir()
        (tmp_path / "evaluation" / "examples.parquet").touch()
    assert is_finished(tmp_path) == finished
