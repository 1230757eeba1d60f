"""The lock of a run folder: two processes never write into one."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from robustlit.tracking.console import say

FILE = ".lock"
_NOT_THERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # file systems without locks, such as some NFS mounts


class FolderInUseError(RuntimeError):
    """Another process writes into the run folder."""


class FolderLock:
    """An exclusive lock on a folder that exists, kept until `release` or the end of the process.

    The kernel releases it with its owner, however that ends, so that a dead owner never keeps it.

    Raises:
        FolderInUseError: Another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.handle: int | None = None
        path = folder / FILE
        while self.handle is None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(handle, folder)
                if _same_file(handle, path):  # else its owner removed the folder meanwhile
                    with suppress(OSError):  # of a full disk; it only names the owner
                        os.ftruncate(handle, 0)
                        os.write(handle, f"{os.getpid()}\n".encode())
                    self.handle = handle
            finally:
                if self.handle is None:
                    os.close(handle)
        # Processes forked from this one, such as those that load data, must not keep the lock after its end.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Give the lock back."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
        raise FolderInUseError(
            f"the run folder {folder} is in use by {f'process {owner}' if owner else 'another process'}; wait until it "
            "ends, or choose another name="
        ) from None
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        say(f"warning: the file system of {folder} has no locks: start no second process in this folder")


def _same_file(handle: int, path: Path) -> bool:
    try:
        there, mine = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
