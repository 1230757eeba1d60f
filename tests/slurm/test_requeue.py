"""SLURM for real, on this machine alone: docs/train.sbatch, its notice in advance, the requeue and the run's end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin"
RECIPE = [
    "recipe=standard", "model=small_cnn", "data.train_size=400", "data.batch_size=10", "data.val_size=60",
    "data.test_size=60", "validation_attack.steps=1", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.max_epochs=6", "sweep=none", "logger=none",
]  # fmt: skip
# Submit, wait for the second epoch, give the notice that SLURM gives before a job's time ends, wait for its end.
NOTICE = """
sbatch --ntasks-per-node=2 --output=log.txt "$DOCS/train.sbatch" part "$@"
until grep -q "epoch 2/" log.txt 2>/dev/null || [ -z "$(squeue -h)" ]; do sleep 0.2; done
scancel --signal=USR1 1
while [ -n "$(squeue -h)" ]; do sleep 1; done
"""
MANY = """
printf '%s\\n' seed=0 'seed=1 eps=0.2' > runs.txt
sbatch --wait --array=1-2 --output=log.txt "$DOCS/many.sbatch" runs.txt study "$@" trainer.max_epochs=1
"""


def with_slurm(folder: Path, script: str) -> str:
    """Run a shell script with a SLURM of its own and return the jobs' log."""
    environment = {
        **os.environ, "PATH": PATH, "PYTHON": sys.executable, "TRAIN": str(ROOT / "train.py"), "OMP_NUM_THREADS": "1",
        "DOCS": str(ROOT / "docs"),
    }  # fmt: skip
    command = [str(ROOT / "benchmarks" / "slurm" / "with_slurm"), "bash", "-c", script, "bash", *RECIPE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    if done.returncode == 69:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "log.txt").read_text()


def weights(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.skipif(
        not all(shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd", "sbatch")),
        reason="SLURM is not installed: apt-get install slurm-wlm munge",
    ),
]


def test_a_job_saves_on_its_notice_is_requeued_and_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    log = with_slurm(tmp_path, NOTICE)
    assert "interrupted by SIGUSR1" in log
    assert "job 1 is requeued" in log
    assert "Traceback" not in log
    part = tmp_path / "runs" / "part"
    assert (part / "results.json").is_file(), log
    whole = [sys.executable, str(ROOT / "train.py"), *RECIPE, "name=whole", "trainer.devices=2"]
    subprocess.run(whole, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=900)
    ours, expected = weights(part), weights(tmp_path / "runs" / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())


def test_an_array_of_jobs_runs_each_line_of_overrides(tmp_path: Path) -> None:
    log = with_slurm(tmp_path, MANY)
    assert [(tmp_path / "runs" / f"study-{n}" / "results.json").is_file() for n in (1, 2)] == [True, True], log
    recipe = (tmp_path / "runs" / "study-2" / "config.yaml").read_text()
    assert "seed: 1" in recipe
    assert "eps: 0.2" in recipe
