"""`robustlit evaluate` with a verdict, and of a net that a function of the user's returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlit.run import FAILED

Run = Callable[..., int]
SMALL = ["logger=none", "sweep=linf", "sweep.attacks.pgd.steps=5", "eps=0.1", "sweep.grid.linf=[]"]
MODULE = """
import torch
from torch import nn
from robustlit.models import SmallCNN

def build():
    return SmallCNN()

def trained():
    net = SmallCNN()
    net.load_state_dict(torch.load("weights.pt"))
    return net

def probabilities():
    return nn.Sequential(trained(), nn.Softmax(1))

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, trained_state: dict[str, Tensor]) -> Iterator[Path]:
    """A folder with a module of the user's and weights."""
    (tmp_path / "own_module.py").write_text(MODULE)
    torch.save(trained_state, tmp_path / "weights.pt")
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("own_module", None)


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_a_net_of_the_users_is_evaluated_and_judged(run: Run, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "own_module:build", "--weights", "weights.pt", "--data=mnist", "--n", "100", "--verdict"]
    assert run("evaluate", *flags, *SMALL) == 0
    shown = capsys.readouterr().out
    assert "verdict (quick, linf eps 0.1)" in shown
    assert "does not prove robustness" in shown
    folder = own / "runs" / "own_module.build-eval"
    found = results_of(folder)
    assert found["n"] == 100
    assert found["clean"]["accuracy"] > 0.9
    assert found["verdict"]["profile"] == "quick"
    stored = json.loads((folder / "evaluation" / "verdict.json").read_text())
    assert {check["number"] for check in stored["checks"]} == set(range(1, 20))


def test_strict_fails_where_the_verdict_does(run: Run, own: Path) -> None:
    flags = ["--model=own_module:probabilities", "--n=30", "--verdict=full"]
    assert run("evaluate", *flags, "--strict", *SMALL) == FAILED
    assert run("evaluate", *flags, *SMALL) == 0
    assert results_of(own / "runs" / "own_module.probabilities-eval")["verdict"]["status"] == "FAIL"


def test_a_checkpoint_is_judged_too(run: Run, own: Path) -> None:
    tiny = ["data.train_size=1500", "data.val_size=100", "data.test_size=100", "trainer.max_epochs=1"]
    train = ["recipe=standard", "model=small_cnn", *tiny, *SMALL, "verdict=quick"]
    assert run("train", *train) == 0
    assert results_of(own / "runs" / "standard")["verdict"]["profile"] == "quick"
    fewer = ["data.test_size=40", "~sweep.attacks.bim"]
    assert run("evaluate", "runs/standard", "--verdict=full", "logger=none", *fewer) == 0
    found = results_of(own / "runs" / "standard-eval")
    assert found["verdict"]["profile"] == "full"
    assert set(found["attacks"]) == {"fgsm", "pgd"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "own_module:number"], "must return the net, a torch.nn.Module, got int"),
        (["--model", "own_module:nothing"], "own_module has no nothing"),
        (["--model", "nowhere_at_all:build"], "cannot import nowhere_at_all"),
        (["--model", "own_module"], "must be module:function, such as my.module:build, got 'own_module'"),
        (["--model", "own_module:build", "--weights", "own_module.py"], "cannot be read safely"),
        (["--model", "own_module:build", "--weights", "other.pt"], "do not fit SmallCNN"),
        (["--model", "own_module:build", "--verdict=long"], "profile must be one of quick, full, got 'long'"),
        (["--model", "own_module:build", "--wieghts", "x"], "there is no flag --wieghts"),
        (["--model", "own_module:build", "runs/standard"], "a checkpoint or --model"),
        (["--model", "own_module:build", "data=mnist", "--data", "mnist"], "given twice"),
        (["runs/a", "runs/b"], "one checkpoint at a time, got runs/a and runs/b"),
        (["runs/a", "--n", "3"], "--n go with --model"),
        (["--model"], "--model needs a value"),
        (["sweep=linf"], "which checkpoint"),
    ],
)
def test_what_makes_no_sense_is_said(
    flags: list[str], message: str, run: Run, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.zeros(1)}, own / "other.pt")
    assert run("evaluate", *flags) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (own / "runs").exists() or not list((own / "runs").glob("*"))
