"""The lock of a run folder: one process at a time, and a dead owner keeps nothing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from robustlit.experiment.lock import FILE, FolderInUseError, FolderLock

pytestmark = pytest.mark.faults


def test_a_second_process_is_refused_and_names_the_first(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(FolderInUseError, match=rf"{tmp_path} is in use by process {os.getpid()}"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_a_dead_owner_keeps_nothing_though_a_child_of_it_lives(tmp_path: Path) -> None:
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        FolderLock(tmp_path)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.write(write, f"{child}\n".encode())
        time.sleep(60)
        os._exit(0)
    child = int(os.read(read, 20))
    try:
        with pytest.raises(FolderInUseError, match=f"process {owner}"):
            FolderLock(tmp_path)
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        FolderLock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_that_its_owner_removed_is_no_longer_locked(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    lock = FolderLock(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    other = FolderLock(folder)
    assert (folder / FILE).is_file()
    other.release()
    lock.release()


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    FolderLock(tmp_path).release()
    assert "has no locks: start no second process" in capsys.readouterr().err
