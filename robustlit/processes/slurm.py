"""SLURM: put the job of this process back into the queue."""

from __future__ import annotations

import os
import subprocess
import sys


def requeue_job() -> None:
    """Ask SLURM to requeue this job (of an array: this task); outside of a batch job do nothing."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    else:
        job = os.environ.get("SLURM_JOB_ID", "")
    if not job or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        trouble = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        trouble = str(error)
    said = f"job {job} is not requeued ({trouble}): submit the script again" if trouble else f"job {job} is requeued"
    print(said, file=sys.stderr, flush=True)
