"""A W&B logger that works everywhere: online when logged in, else offline, and never in the way of a run."""

from __future__ import annotations

import os
import sys
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn


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
    """A `WandbLogger`, online only where the user is logged in.

    WANDB_MODE decides where it is set. If W&B cannot start, a warning says so and metrics go to CSV files instead.

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
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    folder = Path(folder)
    try:
        if getattr(rank_zero_only, "rank", 0) == 0:
            folder.mkdir(parents=True, exist_ok=True)
        logger = WandbLogger(
            project=project,
            name=name,
            group=group,
            job_type=job_type,
            id=run_id,
            save_dir=folder,
            config=config,
            tags=tags,
            mode=mode,
            resume="allow",
            log_model=False,
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )
        run = logger.experiment  # starts here, so that a failure is caught here
        if getattr(rank_zero_only, "rank", 0) == 0:
            # run.dir is <folder>/offline-run-.../files
            where = (
                f"offline; to upload this run: wandb sync {Path(run.dir).parent}" if run.offline else run.url or mode
            )
            print(f"W&B: {where}", file=sys.stderr, flush=True)
        return logger
    except Exception as error:  # wandb raises many kinds, none worth losing a training run for
        rank_zero_warn(f"W&B did not start ({type(error).__name__}: {error}); metrics go to CSV files in {folder}")
        return CSVLogger(save_dir=folder, name="csv", version="")


def _logged_in() -> bool:
    """Whether there is an API key (environment or netrc), without asking a server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(f).expanduser() for f in files if f):
        try:
            found = netrc(file).authenticators(host)
            if found and found[2]:  # the password is the key
                return True
        except (OSError, NetrcParseError, ValueError):  # missing, damaged, not text
            continue
    return False
