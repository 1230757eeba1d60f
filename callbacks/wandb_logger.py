"""A W&B logger that works everywhere: online when logged in, else offline, and never in the way of a run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from robustlit.cli.sync import Kept
from robustlit.tracking.account import logged_in, server
from robustlit.tracking.console import is_main_process

# Of `wandb.Settings`: quiet, and bounded, for by default a run waits minutes for a server at its start and hours at its
# end. `finish_timeout` does not stop the upload of a table, hence the bounds of each GraphQL request; the history keeps
# W&B's patience. Each gives way to its variable (WANDB_INIT_TIMEOUT=120).
_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "init_timeout": 15.0,
    "finish_timeout": 60.0,
    "finish_timeout_raises": True,
    "x_graphql_retry_max": 3,
    "x_graphql_retry_wait_max_seconds": 5.0,
    "x_graphql_timeout_seconds": 15.0,
}
# What W&B says of a server that answered: "returned error 401: ...", "HTTP 500: ...", "failed to upload: 401
# Unauthorized". An address or an id may hold the same digits.
_ANSWERED = re.compile(r"(?:\berror|\bHTTP) ([45]\d\d)\b|(?<=: )([45]\d\d) [A-Z]\w+")
_UNREACHABLE = ("deadline exceeded", "timed out", "connection refused", "no such host", "giving up")


def wandb_logger(
    *,
    project: str = "robustlit",
    name: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    run_id: str | None = None,
    folder: str | Path = ".",
    config: dict[str, Any] | None = None,
    tags: list[str] | None = None,
) -> Logger:
    """A `WandbLogger`: online where the user is logged in and the server answers, else offline.

    WANDB_MODE decides where it is set. Nothing is lost offline: `robustlit sync` uploads it later. If W&B cannot start
    at all, a warning says so and metrics go to CSV files instead. Under `wandb agent` the sweep decides project and id.

    Args:
        project: W&B project.
        name: shown name of the run.
        group: what runs belong together (a training run and the evaluations of its checkpoints).
        job_type: "train" or "eval".
        run_id: id of the run; an existing one is continued.
        folder: where the run's files go (its `wandb/` folder).
        config: the composed recipe.
        tags: shown with the run.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    folder = Path(folder)
    before = ""
    if "WANDB_MODE" not in os.environ and mode == "online" and run_id and _waiting(folder, run_id):
        mode, before = "offline", "an earlier part of this run is not uploaded yet; "
    in_sweep = bool(os.environ.get("WANDB_SWEEP_ID"))
    asked: dict[str, Any] = {
        "project": None if in_sweep else project,
        "name": name,
        "group": group,
        "job_type": job_type,
        "id": None if in_sweep else run_id,
        "save_dir": folder,
        "config": config,
        "tags": tags,
    }
    if not is_main_process():  # whose `experiment` is a dummy: one process of a run speaks to W&B
        return WandbLogger(**asked, mode=mode, resume="allow", log_model=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            logger = _start(asked, mode)
        except Exception as error:
            if mode not in ("online", "run"):
                raise
            before = f"{_in_words(f'{type(error).__name__}: {error}')}; "
            logger = _start(asked, "offline")
        run = logger.experiment
        if run.offline:
            print(
                f"W&B: {before}offline; to upload this run later: {sync_command(folder)}", file=sys.stderr, flush=True
            )
        else:
            print(f"W&B: {run.url or mode}", file=sys.stderr, flush=True)
        return logger
    except Exception as error:  # wandb raises many kinds, none worth losing a training run for
        rank_zero_warn(f"W&B did not start ({type(error).__name__}: {error}); metrics go to CSV files in {folder}")
        return CSVLogger(save_dir=folder, name="csv", version="")


def finish_wandb(exit_code: int) -> str | None:
    """Ends this process's W&B run, in bounded time.

    A run of which everything was uploaded gets the marker that `wandb sync` leaves (run-ID.wandb.synced): W&B itself
    marks no run that was online from the start, so that one cut short would look like any other.

    Returns:
        What to tell the user where a part was not uploaded; else None.
    """
    import wandb

    run = wandb.run
    if run is None or run.disabled:
        wandb.finish(exit_code=exit_code)
        return None
    kept, offline = Path(run.dir).parent, run.offline  # <folder>/wandb/run-.../files
    trouble = None
    try:
        wandb.finish(exit_code=exit_code)
    except TimeoutError:
        trouble = "the server did not take all of it in time"
    except Exception as error:  # the run is done; W&B's trouble is only said
        trouble = f"{type(error).__name__}: {error}"
    if offline:
        return None if trouble is None else f"W&B did not close cleanly: {trouble}"
    trouble = trouble or _not_uploaded(kept)
    if trouble is None:
        for file in kept.glob("*.wandb"):
            try:
                file.with_suffix(".wandb.synced").touch()
            except OSError:  # then `robustlit sync` uploads it once more
                continue
        return None
    return f"W&B: the run was not uploaded completely ({trouble}); to upload it later: {sync_command(kept.parents[1])}"


def sync_command(folder: Path) -> str:
    """The command that uploads a run folder's W&B runs."""
    try:
        shown = folder.absolute().relative_to(Path.cwd())
    except ValueError:
        shown = folder.absolute()
    return f"robustlit sync {shlex.quote(str(shown))}"


def _waiting(folder: Path, run_id: str) -> bool:
    """Whether a part of a run was kept offline, which a later part must not overtake: its summary would win."""
    return any(not Kept(folder, part).uploaded for part in folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))


class BoundedWandbLogger(WandbLogger):
    """Lightning's logger, with a way to end the run that takes bounded time."""

    def finish(self, exit_code: int) -> str | None:
        """As `finish_wandb`."""
        return finish_wandb(exit_code)


def _start(asked: dict[str, Any], mode: str) -> WandbLogger:
    """A logger whose run has started; after a failure nothing of it is left, neither its process nor its files."""
    import wandb

    wanted = {n: v for n, v in _SETTINGS.items() if f"WANDB_{n.upper()}" not in os.environ}
    if "WANDB_HTTP_TIMEOUT" in os.environ:  # the other name of
        wanted.pop("x_graphql_timeout_seconds", None)
    runs = Path(asked["save_dir"]) / "wandb"
    others = set(runs.glob("run-*"))
    try:
        if mode != "disabled":
            with _without_reports(mode == "offline"):
                wandb.setup(wandb.Settings(silent=True) if "silent" in wanted else None)
        logger = BoundedWandbLogger(
            **asked, mode=mode, resume="allow", log_model=False, settings=wandb.Settings(**wanted)
        )  # fmt: skip
        run = logger.experiment  # starts here, so that a failure is caught here
    except Exception:
        if wandb.run is None:
            with suppress(SystemExit):  # how it tells that its process ended badly
                wandb.teardown()  # else that process holds the id: "run ID is in use"
        for failed in set(runs.glob("run-*")) - others:
            shutil.rmtree(failed, ignore_errors=True)
        raise
    if not run.offline:
        # What W&B asks before the first table, it asks now, and keeps: with the server gone by then, it would refuse
        # the table and all that was logged with it, instead of keeping them for a later upload.
        with suppress(Exception):
            run._public_api()
    return logger


@contextmanager
def _without_reports(offline: bool) -> Iterator[None]:
    """Offline means that nothing is sent: W&B's own error reports would hold up the end of a run for 20 seconds."""
    name = "WANDB_ERROR_REPORTING"
    ours = offline and name not in os.environ
    if ours:
        os.environ[name] = "false"
    try:
        yield
    finally:
        if ours:
            del os.environ[name]


def _in_words(trouble: str) -> str:
    """What W&B says of a server, in a few words."""
    text = " ".join(trouble.split())
    answered = _ANSWERED.search(text)
    if answered and {"401", "403"} & {*answered.groups()}:
        return f"{server()} refused the key (`wandb login --relogin` takes a new one)"
    if answered:
        return f"{server()} answered {answered[0]}"
    if any(sign in text.lower() for sign in _UNREACHABLE):
        return f"{server()} cannot be reached"
    return text[:200]


def _not_uploaded(kept: Path) -> str | None:
    """What an online run's own log says of a part that the server did not take; W&B tells it nowhere else."""
    try:
        lines = (kept / "logs" / "debug-internal.log").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            entry = json.loads(line)
            level, message = str(entry["level"]), str(entry["msg"])
        except (ValueError, KeyError, TypeError):
            continue
        if level.startswith("ERROR") and message.startswith(("filestream", "runfiles", "fileTransfer", "runupserter")):
            return _in_words(f"{message}: {entry.get('error', '')}".rstrip(": "))
    return None
