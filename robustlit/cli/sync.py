"""`robustlit sync`: upload the W&B runs that were kept offline or broke off, by W&B's own `wandb sync`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustlit.experiment.recipes import ConfigError
from robustlit.tracking.account import logged_in, server

USAGE = "robustlit sync [RUN ...] [--dry-run]"
_LAST_LINE = "stream: all finished"  # of W&B's log of a run
_WRITTEN_WITHIN = 90  # seconds; W&B writes into a run that goes on at least every 15 or 30
# How long a server is waited for that does not answer: W&B's own defaults mean hours.
_PATIENCE = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "5",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "5",
}


@dataclass(frozen=True)
class Kept:
    """A W&B run as it lies in a run folder.

    Attributes:
        run: the run folder, of which there may be several (a resumed run leaves one each time).
        file: its record, `wandb/[offline-]run-DATE-ID/run-ID.wandb`.
    """

    run: Path
    file: Path

    @property
    def uploaded(self) -> bool:
        """Whether all of it is known to be on the server."""
        try:
            marked = self.file.with_suffix(".wandb.synced").stat().st_mtime
            return marked > self.file.stat().st_mtime - 1  # clocks are coarse; what is written later than that is new
        except OSError:
            return False

    @property
    def ended(self) -> bool:
        """Whether no process writes it any more: W&B's log has its last line, or nothing came for a while."""
        log = self.file.parent / "logs" / "debug-internal.log"
        try:
            text = log.read_text(errors="replace")
            if _LAST_LINE in text:
                return True
        except OSError:
            pass
        return time.time() - self.file.stat().st_mtime > _WRITTEN_WITHIN

    @property
    def state(self) -> str:
        """In words."""
        if self.uploaded:
            return "uploaded"
        if not self.ended:
            return "still being written"
        return "offline" if self.file.parent.name.startswith("offline-") else "not uploaded completely"

    @property
    def line(self) -> str:
        """For a list: folder, size, state."""
        return f"{_shown(self.run)}  {self.file.parent.name}  {self.file.stat().st_size / 1e6:.1f} MB  {self.state}"


def sync(arguments: list[str]) -> int:
    """Uploads what the run folders hold; returns the exit code, 1 where a run could not be uploaded.

    Raises:
        ConfigError: a folder that is missing or holds no runs.
    """
    unknown = [a for a in arguments if a.startswith("-") and a != "--dry-run"]
    if unknown:
        print(f"error: there is no {unknown[0]}; {USAGE}", file=sys.stderr)
        return 2
    folders = [Path(a) for a in arguments if not a.startswith("-")]
    if not folders and not Path("runs").is_dir():
        raise ConfigError(f"there is no folder runs/ here; name the run folders: {USAGE}")
    kept = find_kept(folders or [Path("runs")])
    waiting = [k for k in kept if not k.uploaded]
    ready = [k for k in waiting if k.ended]
    if not waiting:
        print(f"nothing to upload: {f'all {len(kept)} W&B runs are on the server' if kept else 'no W&B runs there'}")
        return 0
    for k in waiting:
        print(k.line)
    if len(ready) < len(waiting):
        print("a run that is still being written is left alone: sync it when it has ended")
    if "--dry-run" in arguments:
        for k in ready:
            print(shlex.join(["wandb", *_command([k])]))
        return 0
    if not ready:
        return 0
    if not logged_in():
        again = shlex.join(["robustlit", "sync", *map(str, folders)])
        host = "" if "WANDB_BASE_URL" not in os.environ else f" --host {server()}"
        print(f"not logged in to {server()}; run `wandb login{host}`, then again `{again}`", file=sys.stderr)
        return 1
    return _upload(ready)


def find_kept(folders: Sequence[Path]) -> list[Kept]:
    """The W&B runs in run folders, or in folders of them, oldest first.

    Raises:
        ConfigError: a folder that is missing or holds no runs.
    """
    found: dict[Path, Kept] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}; {USAGE}")
        runs = [folder] if _is_run(folder) else sorted(f for f in folder.iterdir() if f.is_dir() and _is_run(f))
        if not runs:
            raise ConfigError(f"{folder} is no run folder and holds none: a run has a config.yaml or a wandb/ folder")
        for run in runs:
            for file in run.glob("wandb/*run-*/*.wandb"):
                if not file.parent.is_symlink():  # wandb/latest-run
                    found[file.resolve()] = Kept(run, file)
    return sorted(found.values(), key=lambda k: k.file.parent.name.removeprefix("offline-"))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or any(folder.glob("wandb/*run-*/*.wandb"))


def _command(kept: Sequence[Kept]) -> list[str]:
    # Folder by folder and with --include-online: an online run that broke off lies in a folder like any online one.
    return ["sync", "--include-online", *(str(k.file.parent) for k in kept)]


def _upload(ready: Sequence[Kept]) -> int:
    """One `wandb sync` for all, since it puts the parts of a resumed run in order. Its exit code says nothing."""
    environment = {**_PATIENCE, **os.environ}
    for name in ("WANDB_MODE", "WANDB_SILENT", "WANDB_RESUME"):
        environment.pop(name, None)
    with tempfile.TemporaryDirectory() as own:  # where it logs; else in a folder wandb/ here
        environment["WANDB_DIR"] = own
        done = subprocess.run(
            [sys.executable, "-m", "wandb", *_command([Kept(k.run, k.file.resolve()) for k in ready])],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    lines = [line.removeprefix("wandb: ").strip() for line in done.stdout.splitlines()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith(("ERROR", "Error"))]
    failed = [k for k in ready if not k.uploaded]
    for address in dict.fromkeys(line.rsplit(" at ", 1)[1] for line in lines if "View run " in line and " at " in line):
        print(f"uploaded to {address}")
    for k in failed:
        print(f"error: {_shown(k.run)} was not uploaded{f': {errors[0]}' if errors else ''}", file=sys.stderr)
    if not failed:
        print(f"{len(ready)} W&B run{'s' * (len(ready) > 1)} uploaded")
    return 1 if failed else 0


def _shown(folder: Path) -> Path:
    try:
        return folder.absolute().relative_to(Path.cwd())
    except ValueError:
        return folder
