"""`robustlit evaluate ... resume=auto`: the same command again goes on with an evaluation that was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from robustlit.evaluation import Sweep
from robustlit.results import Evaluation

pytestmark = pytest.mark.faults
Run = Callable[..., int]
COMMAND = ["evaluate", "--model", "kept_module:trained", "--n", "40", "data.eval_batch_size=10", "logger=none",
           "eps=0.1", "sweep=linf", "~sweep.attacks.worst_case", "sweep.attacks.pgd.steps=5", "sweep.grid.linf=[]",
           "~callbacks.images"]  # fmt: skip
MODULE = """
import torch
from robustlit.models import SmallCNN

def trained():
    net = SmallCNN()
    net.load_state_dict(torch.load("weights.pt"))
    return net
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, trained_state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept_module.py").write_text(MODULE)
    torch.save(trained_state, tmp_path / "weights.pt")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the first example of each batch that is attacked; Ctrl-C comes before the one in `stop`."""
    attack_batch, made = Sweep.attack_batch, Calls()

    def watched(self: Sweep, model: Any, x: Tensor, y: Tensor, index: Tensor, report: Any = None) -> Any:
        if len(made) == made.stop:
            raise KeyboardInterrupt
        made.append(int(index[0]))
        return attack_batch(self, model, x, y, index, report)

    monkeypatch.setattr(Sweep, "attack_batch", watched)
    return made


class Calls(list):
    stop: int | None = None


def runs(tmp_path: Path) -> list[str]:
    return sorted(f.name for f in (tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_the_same_command_goes_on(run: Run, calls: Any, tmp_path: Path, capsys: Any) -> None:
    assert run(*COMMAND, "name=whole") == 0
    whole = Evaluation.load(tmp_path / "runs" / "whole-eval")
    calls.clear()
    calls.stop = 2
    assert run(*COMMAND, "name=cut") == 130
    folder = tmp_path / "runs" / "cut-eval"
    assert json.loads((folder / "results.json").read_text())["complete"] is False
    assert len([*folder.glob("evaluation/parts/*.parquet")]) == 2
    calls.stop = None
    capsys.readouterr()
    assert run(*COMMAND, "name=cut", "resume=auto", "trainer.log_every_n_steps=3") == 0
    said = capsys.readouterr().err
    assert "resume=auto: going on in runs/cut-eval" in said
    assert "2 of 4 batches were attacked before" in said
    assert len(calls) == 4
    assert runs(tmp_path) == ["cut-eval", "whole-eval"]
    assert not (folder / "evaluation" / "parts").exists()
    found = Evaluation.load(folder)
    pd.testing.assert_frame_equal(found.to_frame(), whole.to_frame(), check_exact=True)
    kept, expected = (
        json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in ("cut-eval", "whole-eval")
    )
    for changing in ("seconds", "attack_seconds", "name"):
        del kept[changing], expected[changing]
    assert kept == expected
    assert run(*COMMAND, "name=cut", "resume=auto") == 0
    assert "runs/cut-eval is finished, there is nothing to do" in capsys.readouterr().err
    assert len(calls) == 4


def test_other_settings_start_anew(run: Run, calls: Any, tmp_path: Path, capsys: Any) -> None:
    calls.stop = 2
    assert run(*COMMAND, "name=cut") == 130
    calls.stop = None
    assert run(*COMMAND, "name=cut", "resume=auto", "eps=0.2") == 0
    said = capsys.readouterr().err
    assert "there is no unfinished evaluation of these settings; it starts in" in said
    assert runs(tmp_path) == ["cut-eval", "cut-eval-2"]
    assert len([*tmp_path.glob("runs/cut-eval/evaluation/parts/*.parquet")]) == 2
    assert run(*COMMAND, "name=cut", "resume=yes") == 1
    assert "resume must be auto or null, got" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_another_number_of_processes(tmp_path: Path, run: Run) -> None:
    command = [sys.executable, "-m", "robustlit", *COMMAND, "trainer.accelerator=cpu"]
    command = [word.replace("steps=5", "steps=300") for word in command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def ended(*more: str) -> str:
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stderr

    ended("name=whole")
    whole, folder = Evaluation.load(tmp_path / "runs" / "whole-eval"), tmp_path / "runs" / "cut-eval"
    places: list[Path] = []
    for processes in (1, 2):
        more = [f"trainer.devices={processes}", "name=cut", "resume=auto"]
        before = len(places)
        with subprocess.Popen(
            [*command, *more], env=environment, stderr=subprocess.DEVNULL, process_group=0
        ) as process:
            while len(places) <= before and process.poll() is None:
                places = [*folder.glob("evaluation/parts/*.parquet")]
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        assert before < len(places) < 4
    said = ended("trainer.devices=2", "name=cut", "resume=auto")
    assert "of 4 batches were attacked before" in said
    assert runs(tmp_path) == ["cut-eval", "whole-eval"]
    pd.testing.assert_frame_equal(Evaluation.load(folder).to_frame(), whole.to_frame(), check_exact=True)
