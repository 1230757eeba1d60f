"""The W&B runs that lie in run folders: which are uploaded, and the upload of the rest with W&B's own `wandb sync`."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlit.tracking.server import in_few_words

USAGE = "robustlit sync [RUN ...] [--dry-run]"
_LAST_MESSAGE = "stream: all finished"  # in W&B's log of a run
_HEADER = 7  # bytes at the start of a file
_WRITTEN_WITHIN = 90  # seconds; W&B writes into a running run far more often
# What uploads, as W&B's log names it.
_UPLOADS = ("filestream", "runfiles", "fileTransfer", "runupserter")
# How often to try a server that does not answer: with W&B's own defaults it would take hours.
_PATIENCE = {"WANDB_X_GRAPHQL_RETRY_MAX": "3"}
_PATIENCE |= {f"WANDB_X_FILE_{name}_RETRY_MAX": "5" for name in ("STREAM", "TRANSFER")}


@dataclass(frozen=True)
class Kept:
    """A W&B run as it lies in a run folder.

    Args:
        run: The run folder; a resumed run leaves one W&B run in it each time.
        file: Its record, `wandb/[offline-]run-DATE-ID/run-ID.wandb`.
    """

    run: Path
    file: Path

    @property
    def uploaded(self) -> bool:
        """Whether all of it is known to be on the server."""
        with suppress(OSError):  # clocks are coarse: what is written more than a second later is new
            return self.marker.stat().st_mtime > self.file.stat().st_mtime - 1
        return False

    @property
    def marker(self) -> Path:
        """The file that `wandb sync` leaves beside the record; W&B leaves none for a run that was online."""
        return self.file.with_suffix(".wandb.synced")

    @property
    def ended(self) -> bool:
        """Whether no process writes it any more: its log has the last message, or nothing was written for a while."""
        finished = any(_LAST_MESSAGE in str(entry.get("msg")) for entry in self._log())
        return finished or time.time() - self.file.stat().st_mtime > _WRITTEN_WITHIN

    @property
    def upload_error(self) -> str | None:
        """The first upload that failed, from the log of an online run: W&B reports it nowhere else."""
        for entry in self._log():
            message = str(entry.get("msg"))
            if str(entry.get("level")).startswith("ERROR") and message.startswith(_UPLOADS):
                return in_few_words(f"{message}: {entry.get('error', '')}".rstrip(": "))
        return None

    def _log(self) -> Iterator[dict[str, Any]]:
        lines: list[str] = []
        with suppress(OSError):
            lines = (self.file.parent / "logs" / "debug-internal.log").read_text(errors="replace").splitlines()
        for line in lines:
            with suppress(ValueError):
                if isinstance(entry := json.loads(line), dict):
                    yield entry

    @property
    def line(self) -> str:
        """Its line in a list of what is not uploaded: folder, size, state."""
        place = self.file.parent.name
        state = "offline" if place.startswith("offline-") else "not uploaded completely"
        size = f"{self.file.stat().st_size / 1e6:.1f} MB"
        return f"{relative(self.run)}  {place}  {size}  {state if self.ended else 'still being written'}"


def find_kept(folders: Sequence[Path], left_out: Callable[[str], None] | None = None) -> list[Kept]:
    """Return the W&B runs in run folders, or in folders of them, oldest first.

    Args:
        folders: Run folders, or folders of them.
        left_out: Called with a line for each folder that is missing, cannot be read or holds no run, as `runs/*` may
            name some. None raises for such a folder.

    Raises:
        ValueError: No folder is left.
    """
    found: dict[Path, Kept] = {}
    failed: list[str] = []
    for folder in folders:
        try:
            found |= _kept_in(folder)
        except (ValueError, OSError) as error:
            text = (
                str(error) if isinstance(error, ValueError) else f"{folder} cannot be read: {error.strerror or error}"
            )
            if left_out is None or len(folders) == 1:
                raise ValueError(text) from None
            failed.append(text)
    for text in failed:
        assert left_out is not None
        left_out(f"left out: {text}")
    if folders and len(failed) == len(folders):
        raise ValueError(f"none of these {len(folders)} folders holds a run; {USAGE}")
    return sorted(found.values(), key=lambda k: k.file.parent.name.removeprefix("offline-"))


def _kept_in(folder: Path) -> dict[Path, Kept]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; {USAGE}")
    runs = [folder] if _is_run(folder) else sorted(f for f in folder.iterdir() if f.is_dir() and _is_run(f))
    if not runs:
        raise ValueError(f"{folder} is no run folder and holds none: a run has a config.yaml or a wandb/ folder")
    found = {}
    for run in runs:
        for file in run.glob("wandb/*run-*/*.wandb"):
            if not file.parent.is_symlink() and file.is_file():  # wandb/latest-run
                found[file.resolve()] = Kept(run, file)
    return found


def waits_for_upload(folder: Path, run_id: str) -> bool:
    """Return whether a part of a run was kept offline; a later part must not overtake it, or its summary would win."""
    return any(not Kept(folder, part).uploaded for part in folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))


def lost_parts(folder: Path, run_id: str) -> list[Path]:
    """Return the offline parts of a run that hold nothing, as a kill leaves them before W&B wrote what was logged.

    Args:
        folder: The run folder.
        run_id: W&B's id of the run.
    """
    files = sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))
    return [file.parent for file in files if file.stat().st_size <= _HEADER]


def sync_command(folder: Path) -> str:
    """Return the command that uploads a run folder's W&B runs."""
    return f"robustlit sync {shlex.quote(str(relative(folder)))}"


def relative(folder: Path) -> Path:
    """Return a folder relative to the current one, absolute where it lies elsewhere."""
    folder = folder.absolute()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def sync_arguments(kept: Sequence[Kept]) -> list[str]:
    """Return the arguments of `wandb` that upload these runs."""
    # Folder by folder and with --include-online: an interrupted online run lies in a folder like any online run.
    return ["sync", "--include-online", *(str(k.file.parent) for k in kept)]


def upload(kept: Sequence[Kept]) -> tuple[list[str], str]:
    """Upload runs by one `wandb sync`, which puts the parts of a resumed run in order; its exit code says nothing.

    Returns:
        The addresses of the runs, and the first error that was printed, or "". `Kept.uploaded` tells which arrived.
    """
    environment = {**_PATIENCE, **os.environ}
    for name in ("WANDB_MODE", "WANDB_SILENT", "WANDB_RESUME"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "wandb", *sync_arguments([Kept(k.run, k.file.resolve()) for k in kept])]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with tempfile.TemporaryDirectory() as own:  # for its log; else it makes a folder wandb/ in the current one
        environment["WANDB_DIR"] = own
        done = subprocess.run(command, env=environment, text=True, **pipes)
    lines = [line.removeprefix("wandb: ").strip() for line in done.stdout.splitlines()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith(("ERROR", "Error"))]
    addresses = [line.rsplit(" at ", 1)[1] for line in lines if "View run " in line and " at " in line]
    return list(dict.fromkeys(addresses)), next(iter(errors), "")


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or any(folder.glob("wandb/*run-*/*.wandb"))
