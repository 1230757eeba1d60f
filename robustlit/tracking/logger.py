"""The W&B run of a Trainer: online when logged in, else offline, ended in bounded time, never why a run fails."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from robustlit.tracking import metrics
from robustlit.tracking.console import is_main_process, say
from robustlit.tracking.offline import Kept, lost_parts, relative, sync_command, waits_for_upload
from robustlit.tracking.server import in_few_words, logged_in

# Of `wandb.Settings`: quiet, and bounded, because by default a run waits minutes for a server at its start and hours at
# its end. `finish_timeout` does not stop the upload of a table, hence the bounds of each GraphQL request; the history
# keeps W&B's patience. A variable such as WANDB_INIT_TIMEOUT=120 overrides each.
_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "init_timeout": 15.0,
    "finish_timeout": 60.0,
    "finish_timeout_raises": True,
    "x_graphql_retry_max": 3,
    "x_graphql_retry_wait_max_seconds": 5.0,
    "x_graphql_timeout_seconds": 15.0,
    # Seconds between two writes of W&B's process to the run's file: what a kill -9 loses. By default it is 15.
    "x_transaction_log_flush_interval": 1.0,
}


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
    """Return a `WandbLogger`: online where there is a login and the server answers, else offline.

    WANDB_MODE overrides that choice. `robustlit sync` uploads an offline run later. If W&B cannot start at all, a
    warning says so and metrics go to CSV files. Under `wandb agent` the sweep sets project and id.

    Args:
        project: W&B project.
        name: Displayed name of the run.
        group: Runs that belong together: a training run and the evaluations of its checkpoints.
        job_type: "train" or "eval".
        run_id: Id of the run; an existing run is continued.
        folder: Where the run's files go, into `wandb/`.
        config: The composed recipe.
        tags: Tags of the run.
    """
    folder = Path(folder)
    own = {} if os.environ.get("WANDB_SWEEP_ID") else {"project": project, "id": run_id}
    options: dict[str, Any] = {"project": None, "name": name, "group": group, "job_type": job_type, "tags": tags}
    options |= {"config": config, "save_dir": folder, "resume": "allow", "log_model": False, **own}
    mode, reason = _mode(folder, run_id)
    if not is_main_process():  # its `experiment` is a dummy: only the main process logs to W&B
        return WandbLogger(**options, mode=mode)
    for part in lost_parts(folder, run_id) if run_id else ():
        say(
            f"W&B: {relative(part)} is empty: what that part of the run logged was lost in a kill (logger=csv keeps it)"
        )
    try:
        return _start(options, mode, reason)
    except Exception as error:  # wandb raises many kinds, none worth losing a training run for
        rank_zero_warn(f"W&B did not start ({type(error).__name__}: {error}); metrics go to CSV files in {folder}")
        return CSVLogger(save_dir=folder, name="csv", version="")


def _mode(folder: Path, run_id: str | None) -> tuple[str, str]:
    """Return W&B's mode, and why it is offline where the login does not explain it."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode, ""
    if logged_in() and run_id and waits_for_upload(folder, run_id):
        return "offline", "an earlier part of this run is not uploaded yet; "
    return "online" if logged_in() else "offline", ""


def _start(options: dict[str, Any], mode: str, reason: str) -> WandbLogger:
    """Start a run, offline if it fails to start online, and print where it is."""
    folder: Path = options["save_dir"]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        logger = _attempt(options, mode)
    except Exception as error:
        if mode not in ("online", "run"):
            raise
        reason = f"{in_few_words(f'{type(error).__name__}: {error}')}; "
        logger = _attempt(options, "offline")
    run = logger.experiment
    offline = f"{reason}offline; to upload this run later: {sync_command(folder)}"
    print(f"W&B: {offline if run.offline else run.url or mode}", file=sys.stderr, flush=True)
    return logger


def _attempt(options: dict[str, Any], mode: str) -> WandbLogger:
    """Start a run; a failure leaves neither a process nor files of it."""
    import wandb

    known = wandb.Settings.model_fields  # older versions lack some
    settings = {n: v for n, v in _SETTINGS.items() if n in known and f"WANDB_{n.upper()}" not in os.environ}
    if "WANDB_HTTP_TIMEOUT" in os.environ:  # another name of that setting
        settings.pop("x_graphql_timeout_seconds", None)
    runs = options["save_dir"] / "wandb"
    others = set(runs.glob("run-*"))
    try:
        if mode != "disabled":
            with _without_reports(mode == "offline"):
                wandb.setup(wandb.Settings(silent=True) if "silent" in settings else None)
        logger = WandbLogger(**options, mode=mode, settings=wandb.Settings(**settings))
        run = logger.experiment  # starts here, so that a failure is caught here
    except Exception:
        if wandb.run is None:
            with suppress(SystemExit):  # raised where W&B's process ended badly
                wandb.teardown()  # else that process holds the id: "run ID is in use"
        for failed in set(runs.glob("run-*")) - others:
            shutil.rmtree(failed, ignore_errors=True)
        raise
    if not run.offline:
        # Ask now what W&B asks before the first table, so that it is known if the server goes away: W&B would otherwise
        # refuse the table and all that was logged with it, instead of keeping them for a later upload.
        with suppress(Exception):
            run._public_api()  # wandb's own
    return logger


@contextmanager
def _without_reports(offline: bool) -> Iterator[None]:
    """Keep an offline run from sending W&B's error reports, which would delay its end by 20 seconds."""
    before = os.environ.get("WANDB_ERROR_REPORTING")
    if offline:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("WANDB_ERROR_REPORTING", None)


def summarise_in_wandb(trainer: pl.Trainer, results: dict[str, Any]) -> None:
    """Put what a table of runs ranks by, besides the accuracies that `AttackSweep` logs, into the run's summary."""
    seconds = {metrics.seconds(stage): value for stage, value in results["seconds"].items()}
    also = {metrics.PARAMETERS: results["parameters"], **seconds}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            try:
                logger.experiment.summary.update(also)
            except Exception as error:  # wandb raises many kinds, none worth losing results for
                say(f"W&B did not take the run's times: {type(error).__name__}: {error}")


@contextmanager
def failure_ends_wandb(trainer: pl.Trainer) -> Iterator[None]:
    """End the W&B run when the block fails, or the next job of a multirun would log into it."""
    try:
        yield
    except Exception:
        end_in_wandb(trainer, 1)
        raise


def end_in_wandb(trainer: pl.Trainer, code: int) -> None:
    """End the W&B run of a Trainer, if it has one, and print what was not uploaded."""
    if trainer.is_global_zero and any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
        try:
            if trouble := finish_wandb(code):
                say(trouble)
        except Exception as error:  # the run is done, whatever W&B's trouble is
            say(f"W&B did not close cleanly: {error}")


def finish_wandb(exit_code: int) -> str | None:
    """End this process's W&B run, in bounded time, and mark it as uploaded if all of it was.

    Returns:
        A message for the user where a part was not uploaded; else None.
    """
    import wandb

    run, trouble = wandb.run, None
    if run is None or run.disabled:
        wandb.finish(exit_code=exit_code)
        return None
    folder, offline = Path(run.dir).parent, run.offline  # <run folder>/wandb/run-DATE-ID/files
    kept = [Kept(folder.parents[1], file) for file in folder.glob("*.wandb")]
    try:
        wandb.finish(exit_code=exit_code)
    except TimeoutError:
        trouble = "the server did not take all of it in time"
    except Exception as error:  # the run is done, whatever W&B's trouble is
        trouble = f"{type(error).__name__}: {error}"
    if offline:
        return trouble and f"W&B did not close cleanly: {trouble}"
    if trouble := trouble or next(filter(None, (k.upload_error for k in kept)), None):
        later = f"to upload it later: {sync_command(folder.parents[1])}"
        return f"W&B: the run was not uploaded completely ({trouble}); {later}"
    for k in kept:
        with suppress(OSError):  # then `robustlit sync` uploads it once more
            k.marker.touch()
    return None
