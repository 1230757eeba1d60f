"""Real processes: a signal to one or all of them, and the death of each, in training and in a sweep."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustlit import Evaluation

pytestmark = [pytest.mark.slow, pytest.mark.faults]
TRAIN = str(Path(__file__).parents[2] / "train.py")
ENDS_SECONDS = 30  # after a signal or a death
RECIPE = [
    "recipe=standard", "model=small_cnn", "data.train_size=200", "data.batch_size=10", "data.val_size=60",
    "data.test_size=301", "data.eval_batch_size=7", "validation_attack.steps=1", "trainer.accelerator=cpu",
    "trainer.precision=32-true", "logger=none",
]  # fmt: skip


class Run:
    """A run in processes of its own, which are found by its name."""

    def __init__(self, folder: Path, processes: int, *overrides: str) -> None:
        new = f"name=run-{os.getpid()}-{time.monotonic_ns()}"
        self.folder, self.log = folder, folder / f"{new}.log"
        self.tag = next((each for each in overrides if each.startswith("name=")), new)
        overrides = tuple(dict.fromkeys((*overrides, self.tag)))
        command = [sys.executable, TRAIN, *RECIPE, f"trainer.devices={processes}", *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.main = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.tag.removeprefix("name=")

    @property
    def ranks(self) -> dict[int, int]:
        """Rank -> process, of those that still run."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self.tag.encode() in (place / "cmdline").read_bytes():
                    rank = re.search(rb"\0LOCAL_RANK=(\d+)", (place / "environ").read_bytes())
                    found[int(rank[1]) if rank else 0] = int(place.name)
            except OSError:  # it has ended
                continue
        return found

    def wait_for(self, seen: Callable[[str], bool]) -> None:
        until = time.monotonic() + 600
        while not seen(self.log.read_text()):
            assert self.main.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def ended(self) -> tuple[int, str]:
        """Return the exit code and the output, once no process is left."""
        code = self.main.wait(ENDS_SECONDS)
        until = time.monotonic() + ENDS_SECONDS
        while self.ranks:
            assert time.monotonic() < until, f"left: {self.ranks}"
            time.sleep(0.1)
        return code, self.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(processes: int, *overrides: str) -> Run:
        runs.append(Run(tmp_path, processes, *overrides))
        return runs[-1]

    yield make
    for run in runs:
        for process in run.ranks.values():
            os.kill(process, signal.SIGKILL)


def weights(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


SIX = ["trainer.max_epochs=6", "sweep=none", "trainer.limit_test_batches=4"]


@pytest.mark.parametrize(
    ("processes", "number", "to"),
    [(2, signal.SIGTERM, "main"), (2, signal.SIGINT, "all"), (3, signal.SIGUSR1, "last")],
)
def test_all_save_and_leave_at_one_step_and_the_run_resumes_as_if_uninterrupted(
    start: Callable[..., Run], processes: int, number: signal.Signals, to: str
) -> None:
    # DDP orders its buckets anew after the first step, which changes how sums of more than two processes are rounded.
    strategy = "trainer.strategy=" + ("ddp" if processes == 2 else "ddp_find_unused_parameters_true")
    run = start(processes, *SIX, strategy)
    run.wait_for(lambda text: "epoch 2/" in text)
    ranks = run.ranks
    for rank in {"main": [0], "all": ranks, "last": [processes - 1]}[to]:
        os.kill(ranks[rank], number)
    code, text = run.ended()
    assert code == 128 + number, text
    last = run.run_dir / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"interrupted at step {step}; to go on: the same command with resume=auto, or ckpt_path={last}" in text
    for wrong in ("Traceback", "terminate called", "died"):
        assert wrong not in text
    resumed = start(processes, *SIX, strategy, f"run_dir={run.run_dir}-2", f"ckpt_path={last}")
    assert resumed.main.wait(900) == 0, resumed.log.read_text()
    whole = start(processes, *SIX, strategy)
    assert whole.main.wait(900) == 0, whole.log.read_text()
    ours, expected = weights(Path(f"{run.run_dir}-2")), weights(whole.run_dir)
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())


def ended_by_a_death(run: Run, rank: int, processes: int) -> None:
    """Kill a rank and check how the run ends."""
    os.kill(run.ranks[rank], signal.SIGKILL)
    code, text = run.ended()
    assert code == (-signal.SIGKILL if rank == 0 else 1), text
    assert text.count(f"error: rank {rank} of {processes} processes died: the others end\n") == 1, text
    assert "Traceback" not in text


LONG_SWEEP = ["trainer.max_epochs=1", "sweep.attacks.pgd.steps=500", "data.eval_batch_size=7"]
KILLED = [(2, 0), (2, 1), (3, 2)]  # processes and rank; all ranks but the first, which starts them, are alike


@pytest.mark.parametrize(("processes", "rank"), KILLED)
@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_process_that_is_killed_ends_the_others(
    start: Callable[..., Run], where: str, processes: int, rank: int
) -> None:
    validates = ["trainer.limit_train_batches=1", "validation_attack.steps=400"] if where == "validation" else []
    run = start(processes, "trainer.max_epochs=4000", "sweep=none", *validates)
    run.wait_for(lambda text: "epoch 2/" in text)
    time.sleep(0.5)
    ended_by_a_death(run, rank, processes)


@pytest.mark.parametrize(("processes", "rank"), KILLED)
def test_a_process_that_is_killed_in_the_sweep_ends_the_others(
    start: Callable[..., Run], processes: int, rank: int
) -> None:
    run = start(processes, *LONG_SWEEP)
    run.wait_for(lambda text: any((run.run_dir / "evaluation" / "parts").glob("*")))  # a batch is done
    ended_by_a_death(run, rank, processes)


def test_a_sweep_ends_when_it_is_stopped(start: Callable[..., Run]) -> None:
    run = start(2, *LONG_SWEEP)
    run.wait_for(lambda text: any((run.run_dir / "evaluation" / "parts").glob("*")))
    os.kill(run.ranks[0], signal.SIGTERM)
    code, text = run.ended()
    assert code == 143
    assert "Traceback" not in text


@pytest.mark.parametrize(("processes", "rank"), [(2, 1), (3, 0)])
def test_a_run_that_lost_a_process_resumes_as_if_uninterrupted(
    start: Callable[..., Run], processes: int, rank: int
) -> None:
    """A rank is killed in training, then, of the resumed run, in the sweep; the third start ends both."""
    strategy = "trainer.strategy=" + ("ddp" if processes == 2 else "ddp_find_unused_parameters_true")
    settings = ["trainer.max_epochs=6", "data.eval_batch_size=7", "sweep.attacks.pgd.steps=20", strategy]
    run = start(processes, *settings)
    run.wait_for(lambda text: "epoch 3/" in text)
    ended_by_a_death(run, rank, processes)
    again = start(processes, *settings, run.tag, "resume=auto")
    parts = run.run_dir / "evaluation" / "parts"
    again.wait_for(lambda text: len(list(parts.glob("*"))) > 4)
    ended_by_a_death(again, rank, processes)
    assert len(list(parts.glob("*"))) > 4
    last = start(processes, *settings, run.tag, "resume=auto")
    assert last.main.wait(900) == 0, last.log.read_text()
    whole = start(processes, *settings)
    assert whole.main.wait(900) == 0, whole.log.read_text()
    ours, expected = weights(run.run_dir), weights(whole.run_dir)
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())
    tables = [Evaluation.load(each.run_dir).to_frame() for each in (run, whole)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_before_the_start_ends_the_others(start: Callable[..., Run], rank: int) -> None:
    run = start(2, "trainer.max_epochs=4000", "sweep=none")
    run.wait_for(lambda text: len(run.ranks) == 2)
    os.kill(run.ranks[rank], signal.SIGKILL)
    code, text = run.ended()
    assert code == (-signal.SIGKILL if rank == 0 else 1), text
    assert f"error: rank {rank} ended before the run had started: the others end\n" in text


def test_one_two_and_four_processes_give_the_same_table(start: Callable[..., Run]) -> None:
    attacks = ["data.eval_batch_size=25", "trainer.max_epochs=1", "sweep.attacks.pgd.steps=3"]
    trained = start(1, *attacks)
    assert trained.main.wait(900) == 0, trained.log.read_text()
    tables = [Evaluation.load(trained.run_dir).to_frame()]
    for processes in (2, 4):
        run = start(processes, *attacks, f"run_dir={trained.run_dir}-{processes}", f"ckpt_path={trained.run_dir}")
        assert run.main.wait(900) == 0, run.log.read_text()
        tables.append(Evaluation.load(f"{trained.run_dir}-{processes}").to_frame())
        assert json.loads(Path(f"{trained.run_dir}-{processes}", "results.json").read_text())["n"] == 301
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
