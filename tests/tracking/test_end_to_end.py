"""robustlit and the real `wandb` client against a server on 127.0.0.1: upload, resume, a lost server, sync."""

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import wandb
from wandb_server import StoredRun, WandbServer

from robustlit.cli.main import main

pytestmark = pytest.mark.slow
SMALL = [
    "recipe=fgsm_rs", "model=small_cnn", "data.train_size=300", "data.val_size=60", "data.test_size=60",
    "data.batch_size=50", "trainer.max_epochs=1", "trainer.log_every_n_steps=2", "validation_attack.steps=2",
]  # fmt: skip
BARE = [*SMALL, "sweep=none", "~callbacks.images"]  # not attacked
ATTACKED = [
    *SMALL, "callbacks.images.count=2", "sweep.attacks.pgd.steps=3", "sweep.attacks.bim.steps=2",
    "sweep.grid.linf=[0.1,0.3]",
]  # fmt: skip
# Give up a server that is away after a short time.
IMPATIENT = {"WANDB_FINISH_TIMEOUT": "2", "WANDB_X_GRAPHQL_RETRY_MAX": "1"}
# A callback that reports the end of the training, and waits for a file before the attacks begin.
HOLD = """
import pathlib, time
import pytorch_lightning as pl

class Hold(pl.Callback):
    def on_test_start(self, trainer, pl_module):
        pathlib.Path("trained").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.05)
"""


@dataclass
class Done:
    """The result of a command."""

    code: int
    said: str  # standard error
    printed: str

    def line(self) -> str:
        """Return the line that names the W&B run."""
        (line,) = [line for line in self.said.splitlines() if line.startswith("W&B:")]
        return line


def robustlit(*arguments: str, folder: Path, **environment: str) -> Done:
    """Run a command in this process as if in a new one: W&B starts afresh."""
    said, printed = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["robustlit", *arguments])
        patch.setenv("HOME", str(folder))  # without a ~/.netrc
        patch.delenv("WANDB_API_KEY", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        wandb.teardown()
        try:
            with pytest.raises(SystemExit) as exit_:
                main()
        finally:
            wandb.teardown()
            signal.signal(signal.SIGINT, handler)
            os.environ.pop("ROBUSTLIT_RUN_DIR", None)
    return Done(int(exit_.value.code or 0), said.getvalue(), printed.getvalue())


@dataclass
class Trained:
    """An online run and its server."""

    server: WandbServer
    folder: Path
    done: Done
    run: StoredRun  # as it was at its end
    results: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("online")
    with WandbServer() as server:
        tags = "logger.tags=[digits,quick]"
        environment = server.environment(folder / "own")
        done = robustlit("train", *ATTACKED, "name=first", "verdict=quick", tags, folder=folder, **environment)
        results = json.loads((folder / "runs" / "first" / "results.json").read_text())
        yield Trained(server, folder, done, copy.deepcopy(server.run()), results)


# Online


def test_a_run_arrives_with_its_names_and_its_config(trained: Trained) -> None:
    assert trained.done.code == 0, trained.done.said
    run = trained.run
    assert (run.project, run.name, run.group, run.tags) == ("robustlit", "first", "first", ["digits", "quick"])
    assert run.config["eps"] == 0.3
    assert run.config["model"]["_target_"] == "robustlit.models.SmallCNN"
    assert run.exit_code == 0
    assert trained.done.line() == f"W&B: {trained.server.url}/tester/robustlit/runs/{run.id}"
    for word in ("wandb:", "Traceback", "WARN"):
        assert word not in trained.done.said


def test_its_history_holds_training_validation_and_the_curves_by_distance(trained: Trained) -> None:
    run = trained.run
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))
    for key in ("train/loss", "val/accuracy", "val/robust_accuracy", "test/accuracy"):
        assert run.rows(key), key
    points = [row for row in run.history if "attack/pgd/l2" in row]
    distances = [row["attack/pgd/l2"] for row in points]
    assert len(points) > 20
    assert distances == sorted(distances)
    assert points[0]["attack/pgd/accuracy"] == pytest.approx(trained.results["clean"]["accuracy"])
    assert not any("trainer/global_step" in row for row in points)  # they are no steps of training


def test_its_summary_ranks_it(trained: Trained) -> None:
    summary, results = trained.run.summary, trained.results
    assert summary["clean/accuracy"] == results["clean"]["accuracy"]
    assert summary["robust/worst_case@linf=0.3"] == results["worst_case"]["accuracy"]
    assert summary["robust/pgd@linf=0.3"] == results["attacks"]["pgd"]["accuracy"]
    assert summary["verdict"] == results["verdict"]["figure"]
    assert summary["parameters"] == results["parameters"]
    assert summary["seconds/train"] == results["seconds"]["train"]
    assert not any(key.startswith("attack/") for key in summary)


def test_its_tables_and_figures_arrive_as_files(trained: Trained) -> None:
    files = trained.run.files
    for start in ("media/table/robust/table", "media/table/images/table", "media/table/verdict/table"):
        (table,) = [json.loads(content) for name, content in files.items() if name.startswith(start)]
        assert table["columns"]
        assert table["data"]
    for start in ("media/images/figures/curves_l2", "media/images/images/grid"):
        (picture,) = [content for name, content in files.items() if name.startswith(start)]
        assert picture.startswith(b"\x89PNG")


def test_a_run_that_was_uploaded_is_not_uploaded_again(trained: Trained) -> None:
    asked = len(trained.server.asked)
    done = robustlit("sync", folder=trained.folder, **trained.server.environment(trained.folder / "own"))
    assert done.code == 0
    assert "nothing to upload" in done.printed
    assert len(trained.server.asked) == asked


def test_a_resumed_run_continues_at_its_last_step(trained: Trained, tmp_path: Path) -> None:
    # In a copy: it may find a better checkpoint, and other tests look at the one that was attacked.
    shutil.copytree(trained.folder / "runs", tmp_path / "runs", symlinks=True)
    server, last = trained.server, "runs/first/checkpoints/last.ckpt"
    history, stood, runs = trained.run.history, server.runs[trained.run.id], len(server.runs)
    done = robustlit(
        "train", *BARE, "schedule=null", "trainer.max_epochs=2", f"ckpt_path={last}",
        folder=tmp_path, **server.environment(tmp_path / "own"),
    )  # fmt: skip
    assert done.code == 0, done.said
    assert len(server.runs) == runs
    assert stood.history[: len(history)] == history  # nothing is lost
    assert [row["_step"] for row in stood.history] == list(range(len(stood.history)))
    assert max(step for _, step in stood.rows("trainer/global_step")) > 10  # 5 in the first epoch
    assert stood.rows("train/loss")[-1][0] > history[-1]["_step"]
    assert (stood.exit_code, stood.completions) == (0, 2)


def test_an_evaluation_is_a_run_of_its_own_in_the_group_of_its_training(trained: Trained) -> None:
    server = trained.server
    before = set(server.runs)
    done = robustlit("evaluate", "runs/first", folder=trained.folder, **server.environment(trained.folder / "own"))
    assert done.code == 0, done.said
    (new,) = set(server.runs) - before
    assert (server.runs[new].job_type, server.runs[new].group) == ("eval", "first")
    assert server.runs[new].summary["robust/worst_case@linf=0.3"] == trained.results["worst_case"]["accuracy"]
    assert not server.runs[new].rows("train/loss")


def test_a_sweep_chooses_the_id_and_the_project(tmp_path: Path) -> None:
    with WandbServer() as server:
        agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agents01", "WANDB_PROJECT": "theirs"}
        done = robustlit("train", *BARE, "name=a", folder=tmp_path, **server.environment(tmp_path / "own"), **agent)
        assert done.code == 0, done.said
        assert (server.run().id, server.run().project, server.run().sweep) == ("agents01", "theirs", "sweep1")
        assert server.run().exit_code == 0
    stored = torch.load(tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["robustlit"]["config"]["logger"]["run_id"] == "agents01"
    assert "Ignoring" not in done.said


# Offline


@pytest.mark.parametrize("away", [False, True])
def test_a_run_kept_offline_is_uploaded_later(away: bool, tmp_path: Path) -> None:
    with WandbServer() as server:
        environment, reason, settings = server.environment(tmp_path / "own"), "", {"WANDB_MODE": "offline"}
        if away:
            reason, settings = f"{server.url} cannot be reached; ", {"WANDB_INIT_TIMEOUT": "2"}
            server.stop()
        done = robustlit("train", *BARE, "name=off", folder=tmp_path, **{**environment, **settings})
        assert done.code == 0
        assert done.line() == f"W&B: {reason}offline; to upload this run later: robustlit sync runs/off"
        assert server.asked == []
        if away:
            server.start()
        command = done.line().split("robustlit ")[1].split()
        assert robustlit(*command, folder=tmp_path, **environment).code == 0
        assert server.run().name == "off"
        assert server.run().rows("val/robust_accuracy")
        assert server.run().exit_code == 0
        again = robustlit(*command, folder=tmp_path, **environment)
        assert "nothing to upload" in again.printed
        assert server.run().completions == 1


def test_a_server_that_goes_away_in_mid_run_costs_nothing(tmp_path: Path) -> None:
    with WandbServer() as server:
        environment = server.environment(tmp_path / "own")
        (tmp_path / "hold.py").write_text(HOLD)
        hold = "+callbacks.hold._target_=hold.Hold"
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        running = subprocess.Popen(
            [sys.executable, "-m", "robustlit", "train", *ATTACKED, "name=cut", hold],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment, **IMPATIENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )  # fmt: skip
        try:
            end = time.monotonic() + 600  # for a training of seconds, on however slow a machine
            while not (tmp_path / "trained").exists():
                assert running.poll() is None, running.communicate()[1]
                assert time.monotonic() < end, "the training did not end"
                time.sleep(0.02)
            server.stop()
            (tmp_path / "go").touch()
            said = running.communicate(timeout=600)[1]
        finally:
            running.kill()
        assert running.returncode == 0, said
        assert (tmp_path / "runs" / "cut" / "results.json").is_file()
        arrived = len(server.run().history)
        assert server.run().exit_code is None
        (line,) = [line for line in said.splitlines() if "not uploaded completely" in line]
        assert line.endswith("to upload it later: robustlit sync runs/cut")
        server.start()
        assert robustlit("sync", "runs/cut", folder=tmp_path, **environment).code == 0
        run = server.run()
        assert len(run.history) > arrived
        assert [row["_step"] for row in run.history] == list(range(len(run.history)))
        results = json.loads((tmp_path / "runs" / "cut" / "results.json").read_text())
        assert run.summary["robust/worst_case@linf=0.3"] == results["worst_case"]["accuracy"]
        assert any(name.startswith("media/table/robust/table") for name in run.files)
        assert run.exit_code == 0


def test_a_run_that_fails_leaves_no_wandb_run_behind(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **rest: object) -> None:
        assert wandb.run is not None
        raise MemoryError("the GPU is full")

    for method in ("fit", "test"):  # a job of a multirun; the next would log into its W&B run
        monkeypatch.setattr(pl.Trainer, method, fail)
        assert run("train", "recipe=fgsm_rs", "trainer.max_epochs=1", "data.train_size=100", "data.test_size=10") == 1
        assert "the GPU is full" in capfd.readouterr().err
        assert wandb.run is None
        monkeypatch.setattr(pl.Trainer, "fit", lambda *arguments, **rest: None)
