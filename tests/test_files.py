"""Files are written whole or not at all: a kill, a full disk and a second writer leave the former file."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from robustlit.files import PART, remove_parts, write_file, write_tensors

pytestmark = pytest.mark.faults


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*")}


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 1000 bytes (so nor may pytest's own output): the kernel refuses it as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_what_was_written_with_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (tmp_path / "plain").write_text("x")
        path = write_file(tmp_path / "deep" / "er" / "file.txt", "ä\n")
    finally:
        os.umask(before)
    assert path.read_bytes() == "ä\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o640
    path.chmod(0o600)
    write_file(path, b"again")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"again", 0o600)
    assert names(tmp_path / "deep" / "er") == {"file.txt"}


def test_a_link_is_followed(tmp_path: Path) -> None:
    write_file(tmp_path / "file", "1")
    (tmp_path / "link").symlink_to("file")
    write_file(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "2"


@pytest.mark.parametrize("write", [write_file, write_tensors])
def test_a_full_disk_keeps_the_former_file_and_the_error_names_it(
    write: Callable[[Path, object], Path], tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("good")
    with small_files(), pytest.raises(OSError, match=rf"cannot write {path}: File too large"):
        write(path, b"x" * 5000)
    assert path.read_text() == "good"
    assert names(tmp_path) == {"last.ckpt"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("broken")])
def test_an_error_of_the_disk_at_the_last_moment_keeps_the_former_file(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("good")

    def failing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match=rf"cannot write {path}: (No space left on device|broken)$"):
        write_file(path, "new")
    assert path.read_text() == "good"
    assert names(tmp_path) == {"file"}


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_former_file_and_a_part_that_the_next_start_removes(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "file.png"
    write_file(path, "good")
    code = (
        "import os, signal, sys; from robustlit.files import write_file\n"
        "os.replace = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_file(sys.argv[1], 'new' * 1000)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "good"
    (part,) = [file for file in path.parent.iterdir() if file.name.endswith(PART)]
    assert not part.match("*.png")
    remove_parts(tmp_path)
    assert names(path.parent) == {"file.png"}


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    mine, living = (tmp_path / f".file.{process}{PART}" for process in (os.getpid(), os.getppid()))
    mine.touch()
    living.touch()
    (tmp_path / f"named{PART}").touch()  # a file of the user's
    remove_parts(tmp_path)
    assert names(tmp_path) == {living.name, f"named{PART}"}


def test_tensors_come_back(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "w.pt", {"a": torch.arange(3)})
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3))
