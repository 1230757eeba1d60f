"""`robustlit sync`: which W&B runs it finds, in which state, and what it prints (uploads: tests/tracking)."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb_records import keep
from wandb_server import forget_login

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: Patch, run: Run) -> None:
    forget_login(monkeypatch, tmp_path)


@pytest.fixture
def started(monkeypatch: Patch) -> list[list[str]]:
    """The commands that are started; each prints what `wandb sync` prints when the server is away."""
    commands: list[list[str]] = []

    def start(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "wandb: Syncing\nwandb: ERROR no route to the server\n")

    monkeypatch.setattr(subprocess, "run", start)
    return commands


def test_it_lists_what_is_not_uploaded_and_in_which_state(run: Run, capsys: Capture) -> None:
    keep("runs/a/wandb/offline-run-20260101_000000-aaa")
    keep("runs/b/wandb/run-20260102_000000-bbb")
    keep("runs/c/wandb/run-20260103_000000-ccc", synced=True)
    keep("runs/d/wandb/offline-run-20260104_000000-ddd", ended=False)
    keep("runs/e/wandb/offline-run-20260105_000000-eee", ended=False, age=1000)  # its process was killed
    assert run("sync", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "runs/a  offline-run-20260101_000000-aaa  0.2 MB  offline",
        "runs/b  run-20260102_000000-bbb  0.2 MB  not uploaded completely",
        "runs/d  offline-run-20260104_000000-ddd  0.2 MB  still being written",
        "runs/e  offline-run-20260105_000000-eee  0.2 MB  offline",
    ]
    assert lines[4].startswith("a run that is still being written is left alone")
    assert lines[5:] == [
        "wandb sync --include-online runs/a/wandb/offline-run-20260101_000000-aaa",
        "wandb sync --include-online runs/b/wandb/run-20260102_000000-bbb",
        "wandb sync --include-online runs/e/wandb/offline-run-20260105_000000-eee",
    ]


def test_without_a_key_it_prints_what_to_do(run: Run, capsys: Capture, started: list[list[str]]) -> None:
    keep("runs/a b/wandb/offline-run-20260101_000000-aaa")
    assert run("sync", "runs/a b") == 1
    asked = "not logged in to https://api.wandb.ai; run `wandb login`, then again `robustlit sync 'runs/a b'`"
    assert asked in capsys.readouterr().err
    assert started == []


def test_a_run_that_was_not_uploaded_is_an_error_whatever_wandb_sync_exits_with(
    run: Run, capsys: Capture, monkeypatch: Patch, started: list[list[str]]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    keep("runs/a/wandb/offline-run-20260101_000000-aaa")
    keep("runs/b/wandb/offline-run-20260102_000000-bbb", ended=False)  # is still being written
    assert run("sync") == 1
    assert "error: runs/a was not uploaded: no route to the server" in capsys.readouterr().err
    (command,) = started
    assert command[1:5] == ["-m", "wandb", "sync", "--include-online"]
    assert [Path(path).name for path in command[5:]] == ["offline-run-20260101_000000-aaa"]


def test_there_may_be_nothing_to_do(run: Run, capsys: Capture, started: list[list[str]]) -> None:
    keep("runs/a/wandb/run-20260101_000000-aaa", synced=True)
    assert run("sync") == 0
    assert "nothing to upload: all 1 W&B runs" in capsys.readouterr().out
    Path("runs/csv").mkdir()
    Path("runs/csv/config.yaml").touch()
    assert run("sync", "runs/csv") == 0
    assert "nothing to upload: no W&B runs there" in capsys.readouterr().out
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no folder runs/ here; name the run folders: robustlit sync [RUN ...] [--dry-run]"),
        (["nowhere"], "there is no folder nowhere"),
        (["photos"], "photos is no run folder and holds none"),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused(arguments: list[str], message: str, run: Run, capsys: Capture) -> None:
    Path("photos").mkdir()
    assert run("sync", *arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
