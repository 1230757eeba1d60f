"""robustlit sync: which W&B runs it finds, in which state, and what it says (uploads: test_wandb_end_to_end.py)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustlit.cli.sync import Kept, find_kept, sync
from robustlit.experiment.recipes import ConfigError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder of a user without a key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are started; each says what `wandb sync` says of a server that is not there."""
    commands: list[list[str]] = []

    def start(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "wandb: Syncing\nwandb: ERROR no route to the server\n")

    monkeypatch.setattr(subprocess, "run", start)
    return commands


def keep(name: str, folder: str, *, synced: bool = False, ended: bool = True, age: float = 0) -> Path:
    """A W&B run in runs/NAME/wandb/FOLDER, last written `age` seconds ago; returns its record."""
    at = Path("runs") / name / "wandb" / folder
    (at / "logs").mkdir(parents=True)
    (Path("runs") / name / "config.yaml").touch()
    file = at / f"run-{folder.rsplit('-', 1)[1]}.wandb"
    file.write_bytes(b"0" * 200_000)
    (at / "logs" / "debug-internal.log").write_text('{"msg":"stream: all finished"}\n' if ended else '{"msg":"x"}\n')
    os.utime(file, (time.time() - age,) * 2)
    if synced:
        file.with_suffix(".wandb.synced").touch()
    return file


def test_it_lists_what_is_not_uploaded_and_in_which_state(capsys: pytest.CaptureFixture[str]) -> None:
    keep("a", "offline-run-20260101_000000-aaa")
    keep("b", "run-20260102_000000-bbb")
    keep("c", "run-20260103_000000-ccc", synced=True)
    keep("d", "offline-run-20260104_000000-ddd", ended=False)
    keep("e", "offline-run-20260105_000000-eee", ended=False, age=1000)  # its process was killed
    assert sync(["--dry-run"]) == 0
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


def test_runs_are_found_in_a_run_folder_and_in_the_folder_above() -> None:
    newer, older = keep("a", "offline-run-20260102_000000-aaa"), keep("b", "run-20260101_000000-bbb")
    (newer.parents[1] / "latest-run").symlink_to(newer.parent.name)
    assert [k.file for k in find_kept([Path("runs")])] == [older, newer]  # parts of a run in the order of their start
    assert [k.file for k in find_kept([Path("runs/a")])] == [newer]
    assert [k.file for k in find_kept([Path("runs/a"), Path("runs")])] == [older, newer]


def test_without_a_key_it_says_what_to_do(capsys: pytest.CaptureFixture[str], started: list[list[str]]) -> None:
    keep("a b", "offline-run-20260101_000000-aaa")
    assert sync(["runs/a b"]) == 1
    assert (
        "not logged in to https://api.wandb.ai; run `wandb login`, then again `robustlit sync 'runs/a b'`"
        in capsys.readouterr().err
    )
    assert started == []


def test_a_run_that_was_not_uploaded_is_an_error_whatever_wandb_sync_exits_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    keep("a", "offline-run-20260101_000000-aaa")
    keep("b", "offline-run-20260102_000000-bbb", ended=False)
    assert sync([]) == 1
    assert "error: runs/a was not uploaded: no route to the server" in capsys.readouterr().err
    (command,) = started
    assert command[1:5] == ["-m", "wandb", "sync", "--include-online"]
    assert [Path(path).name for path in command[5:]] == ["offline-run-20260101_000000-aaa"]  # the other goes on


def test_there_may_be_nothing_to_do(capsys: pytest.CaptureFixture[str], started: list[list[str]]) -> None:
    keep("a", "run-20260101_000000-aaa", synced=True)
    assert sync([]) == 0
    assert "nothing to upload: all 1 W&B runs" in capsys.readouterr().out
    (Path("runs") / "csv").mkdir()
    (Path("runs") / "csv" / "config.yaml").touch()
    assert sync(["runs/csv"]) == 0
    assert "nothing to upload: no W&B runs there" in capsys.readouterr().out
    assert started == []


@pytest.mark.parametrize(("make", "arguments", "said"), [
    (lambda: None, [], "there is no folder runs/ here; name the run folders"),
    (lambda: None, ["nowhere"], "there is no folder nowhere"),
    (lambda: Path("photos").mkdir(), ["photos"], "photos is no run folder and holds none"),
])  # fmt: skip
def test_a_folder_that_is_not_a_run_is_refused(make: Callable[[], None], arguments: list[str], said: str) -> None:
    make()
    with pytest.raises(ConfigError, match=said):
        sync(arguments)


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert sync(["--force"]) == 2
    assert "there is no --force" in capsys.readouterr().err


def test_a_run_that_grew_after_its_upload_is_not_up_there_whole(tmp_path: Path) -> None:
    file = tmp_path / "run" / "wandb" / "offline-run-1-a" / "run-a.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"1")
    file.with_suffix(".wandb.synced").touch()
    assert Kept(tmp_path / "run", file).uploaded
    later = file.stat().st_mtime + 10
    os.utime(file, (later, later))
    assert not Kept(tmp_path / "run", file).uploaded
