"""Write files so that a kill, a power cut or a full disk never leaves half a file in the place of a good one."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

PART = ".part"  # ends the name of a file that is still being written: .NAME.PROCESS.part, beside NAME


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Write a file beside its place, flush it to the disk, and move it there; its folder is created if needed.

    Until the last moment the file that was there before is untouched. A link is followed, and permissions are those
    that an ordinary open would leave.

    Args:
        path: The file.
        content: Bytes, or text, written as UTF-8.

    Raises:
        OSError: It names `path`; the former file is as it was.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{os.getpid()}{PART}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, part)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        text = f"cannot write {path}: {error.strerror or error}"
        raise (OSError(text) if error.errno is None else OSError(error.errno, text)) from error
    _flush_folder(target.parent)
    return Path(path)


def write_tensors(path: str | Path, content: Any) -> Path:
    """Write what `torch.load` reads, as `write_file` does."""
    import torch  # not above: who reads results needs no torch

    # Into memory first: torch's own writer reports a full disk as an internal error.
    memory = io.BytesIO()
    torch.save(content, memory)
    return write_file(path, memory.getbuffer())  # type: ignore[arg-type]


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed while writing left in a folder and below it."""
    for part in folder.rglob(f".*{PART}"):
        process = part.name.removesuffix(PART).rpartition(".")[2]
        if process.isdigit() and (int(process) == os.getpid() or not _is_alive(int(process))):
            part.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make a new name in a folder outlast a power cut, on file systems that can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
