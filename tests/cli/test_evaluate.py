"""`robustlit evaluate` with a verdict, and of a net that a function of the user returns."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from robustlit.evaluation import Sweep
from robustlit.results import Evaluation

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
SMALL = [
    "logger=none",
    "sweep=linf",
    "~sweep.attacks.worst_case",
    "sweep.attacks.pgd.steps=5",
    "eps=0.1",
    "sweep.grid.linf=[]",
]
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
class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = SmallCNN()
    def forward(self, x):
        return {"logits": self.net(x)}
def wide(width):
    return SmallCNN(width=width)
def colour():
    return SmallCNN(in_chans=3)
def twelve():
    return SmallCNN(12)
built = SmallCNN()
"""


@pytest.fixture
def own(tmp_path: Path, trained_state: dict[str, Tensor]) -> Iterator[Path]:
    """A folder with a module of the user and weights."""
    (tmp_path / "own_module.py").write_text(MODULE)
    torch.save(trained_state, tmp_path / "weights.pt")
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("own_module", None)


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def said(capsys: Capture) -> str:
    return "\n" + capsys.readouterr().err


@pytest.mark.slow
def test_a_net_of_the_user_is_evaluated_and_judged(run: Run, own: Path, capsys: Capture) -> None:
    flags = ["--model", "own_module:build", "--weights", "weights.pt", "--data=mnist", "--n", "100", "--verdict"]
    assert run("evaluate", *flags, *SMALL) == 0
    shown = capsys.readouterr().out
    assert "(quick, linf eps 0.1): " in shown
    assert "which is no proof" in shown
    folder = own / "runs" / "own_module.build-eval"
    found = results_of(folder)
    assert found["n"] == 100
    assert found["clean"]["accuracy"] > 0.9
    assert found["verdict"]["profile"] == "quick"
    assert (found["of"], found["chosen"]) == (10_000, "class by class")
    assert "own_module.build-eval: 100 of 10000 test images, chosen class by class" in shown
    stored = json.loads((folder / "evaluation" / "verdict.json").read_text())
    assert {check["number"] for check in stored["checks"]} == {*range(1, 20), *range(21, 28)}


@pytest.mark.slow
def test_strict_fails_where_the_verdict_does(run: Run, own: Path) -> None:
    flags = ["--model=own_module:probabilities", "--n=30", "--verdict=full"]
    assert run("evaluate", *flags, "--strict", *SMALL) == 3
    assert run("evaluate", *flags, *SMALL) == 0
    assert results_of(own / "runs" / "own_module.probabilities-eval")["verdict"]["figure"] == "overstated"


@pytest.mark.slow
def test_the_gate_fails_below_the_share_that_is_asked_for(run: Run, own: Path, capsys: Capture) -> None:
    flags = ["--model=own_module:trained", "--n=40", *SMALL, "eps=0.02", "resume=auto"]
    assert run("evaluate", *flags, "--min-robust", "0.3") == 0
    assert re.search(
        r"\n[\d.]+ % \[.*\] of 40 images are robust at linf 0.02; --min-robust asks for 30 %", said(capsys)
    )
    assert run("evaluate", *flags, "--min-robust=1") == 4  # nothing is attacked again
    shown = said(capsys)
    assert "is finished, there is nothing to do" in shown
    assert "error: only " in shown
    assert OmegaConf.load(own / "runs" / "own_module.trained-eval" / "config.yaml").min_robust == 0.3
    # A figure that is overstated goes before one that is too low.
    flags = ["--model=own_module:probabilities", "--n=30", "--verdict=full", "--min-robust=1", *SMALL]
    assert run("evaluate", *flags) == 4
    assert run("evaluate", *flags, "--strict") == 3


def test_a_gate_on_nothing_is_refused_before_anything_is_computed(run: Run, own: Path, capsys: Capture) -> None:
    net = ["evaluate", "--model=own_module:build", "--n=20", "logger=none"]
    for command, code, message in (
        ([*net, "--min-robust", "40"], 2, "--min-robust must be a share in (0, 1], got 40; did you mean 0.4?"),
        ([*net, "--min-robust=some"], 2, "--min-robust must be a share in (0, 1], got some; it is the least share"),
        ([*net, "--min-robust=0.4", "sweep=none"], 1, "a robust accuracy at linf 0.3, and with sweep=none nothing is"),
        (
            [*net, "--min-robust=0.4", *WITHOUT_PGD, *DDN],
            1,
            "no attack of the sweep (ddn) runs at that budget",
        ),
        (
            ["train", "recipe=standard", "min_robust=40", "logger=none"],
            1,
            "min_robust must be a share in (0, 1], got 40;",
        ),
        (
            ["train", "recipe=standard", "min_robust=.4", "sweep=none"],
            1,
            "min_robust=0.4 (--min-robust) needs a robust",
        ),
    ):
        assert run(*command) == code
        assert message in capsys.readouterr().err
    assert not (own / "runs").exists()


ATTACKS = ("worst_case", "fgsm", "bim", "pgd")
WITHOUT_PGD = ["logger=none", "sweep=linf", *(f"~sweep.attacks.{name}" for name in ATTACKS)]
DDN = ["+sweep.attacks.ddn._target_=robustlit.attacks.DDN", "+sweep.attacks.ddn.steps=3"]  # no budget to be judged at


@pytest.mark.slow
def test_strict_fails_where_there_is_no_verdict(run: Run, own: Path, capsys: Capture) -> None:
    flags = ["--model=own_module:build", "--n=20", "--verdict", *WITHOUT_PGD, *DDN]
    with pytest.warns(UserWarning, match="there is no verdict: there is no adaptive budget attack"):
        assert run("evaluate", *flags, "--strict", "name=strict") == 1
    shown = capsys.readouterr().err
    assert "error: --strict, but there is no verdict: there is no adaptive budget attack to judge" in shown
    found = results_of(own / "runs" / "strict-eval")  # and nothing is lost
    assert "ddn" in found["attacks"]
    assert "verdict" not in found
    assert (own / "runs" / "strict-eval" / "evaluation" / "examples.parquet").is_file()
    with pytest.warns(UserWarning, match="there is no verdict"):
        assert run("evaluate", *flags) == 0


def test_a_verdict_on_nothing_is_refused_before_anything_is_computed(run: Run, own: Path, capsys: Capture) -> None:
    own_net = ["evaluate", "--model=own_module:build", "--n=20"]
    for command in (
        [*own_net, "--verdict", "--strict"],
        [*own_net, "--strict"],
        ["train", "recipe=standard", "verdict=full"],
    ):
        assert run(*command, "logger=none", "sweep=none") == 1
        assert "with sweep=none there is none" in capsys.readouterr().err
        assert run(*command, *SMALL, "sweep.knowledge=[blackbox]") == 1
        assert "sweep.knowledge=[blackbox] runs none: add adaptive" in capsys.readouterr().err
    assert not (own / "runs").exists()


@pytest.mark.slow
def test_what_the_recipe_would_have_trained_is_not_stored_for_a_net_of_the_user(run: Run, own: Path) -> None:
    recipe = ["recipe=label_smoothing", "sweep=linf", "sweep.attacks.pgd.steps=2", "logger=none"]
    assert run("evaluate", "--model=own_module:build", "--n=20", *recipe) == 0
    stored = OmegaConf.load(own / "runs" / "own_module.build-eval" / "config.yaml")
    assert stored.eps == 0.1  # the recipe's
    assert (stored.ckpt_path, stored.recipe) == ("own_module:build", "evaluate")
    assert [stored[key] for key in ("model", "objective", "optimizer", "schedule")] == [None] * 4


# A folder is left only where something was computed


@pytest.mark.parametrize("function", ["Answers", "colour", "twelve"])
def test_a_net_that_cannot_be_attacked_leaves_no_folder(function: str, run: Run, own: Path, capsys: Capture) -> None:
    assert run("evaluate", f"--model=own_module:{function}", "--n=20", *SMALL) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: own_module:{function}")
    assert error.count("\n") == 1
    assert not list((own / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [(ValueError("no gradient arrives"), 1), (KeyboardInterrupt(), 130)])
def test_an_evaluation_that_ends_in_its_first_batch_leaves_no_folder_and_no_wandb_run(
    error: BaseException, code: int, run: Run, own: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    import wandb

    ended = []
    finish = wandb.finish
    monkeypatch.setattr(wandb, "finish", lambda exit_code=None: (ended.append(exit_code), finish(exit_code)))

    def fails(self: Sweep, *arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(Sweep, "attack_batch", fails)
    flags = ["--model=own_module:build", "--n=20", "sweep=linf"]
    assert run("evaluate", *flags, "logger=wandb") == code  # in the sweep, after the picture of the first images
    assert str(error) in capsys.readouterr().err
    assert not list((own / "runs").iterdir())
    assert ended[:1] == [code]
    assert wandb.run is None


def test_figures_of_all_images_stand_beside_those_of_the_first(run: Run, own: Path) -> None:
    assert run("evaluate", "--model", "own_module:trained", *SMALL, "data.test_size=60", "sweep.images=20") == 0
    folder = own / "runs" / "own_module.trained-eval"
    found = results_of(folder)
    of_all = found["all_images"]
    assert (found["n"], found["clean"]["n"], of_all["n"], of_all["clean"]["n"]) == (20, 20, 60, 60)
    for figures, part in ((found, ""), (of_all, "all_images")):
        evaluation = Evaluation.load(folder / "evaluation" / part)
        assert figures["clean"]["accuracy"] == float(evaluation.clean_accuracy)
        assert figures["attacks"]["pgd"]["accuracy"] == float(evaluation.accuracy(eps=0.1, attack="pgd"))
    assert [*of_all["attacks"]] == [*of_all["attack_seconds"]] == ["pgd"]


@pytest.mark.slow
def test_what_was_computed_stays_when_the_end_fails(run: Run, own: Path, monkeypatch: Patch) -> None:
    def fails(*arguments: Any, **more: Any) -> Any:
        raise ValueError("at the very end")

    monkeypatch.setattr(Evaluation, "passes", fails)  # a column of results.json
    assert run("evaluate", "--model=own_module:build", "--n=20", *SMALL) == 1
    folder = own / "runs" / "own_module.build-eval"
    assert (folder / "evaluation" / "examples.parquet").is_file()
    assert (folder / "config.yaml").is_file()


@pytest.mark.slow
def test_a_checkpoint_is_judged_too(run: Run, own: Path) -> None:
    tiny = ["data.train_size=1500", "data.val_size=100", "data.test_size=100", "trainer.max_epochs=1"]
    train = ["recipe=standard", "model=small_cnn", *tiny, *SMALL, "verdict=quick"]
    assert run("train", *train) == 0
    assert results_of(own / "runs" / "standard")["verdict"]["profile"] == "quick"
    assert run("evaluate", "runs/standard", "data.test_size=10001") == 1  # too many, and nothing is left of it
    assert [folder.name for folder in (own / "runs").iterdir()] == ["standard"]
    fewer = ["data.test_size=40", "~sweep.attacks.bim"]
    assert run("evaluate", "runs/standard", "--verdict=full", "logger=none", *fewer) == 0
    found = results_of(own / "runs" / "standard-eval")
    assert found["verdict"]["profile"] == "full"
    assert set(found["attacks"]) == {"fgsm", "pgd"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "own_module:number"], "must return the net, a torch.nn.Module, got int"),
        (["--model", "own_module:built"], "own_module:built is a net; --model takes a function that returns it"),
        (["--model", "own_module:__name__"], "must be a function that returns the net, got str"),
        (["--model", "own_module:wide"], "own_module:wide is called without arguments: missing a required argument"),
        (["--model", "own_module:build", "--weights", "none.pt"], "there is no file none.pt"),
        (["--model", "own_module:build", "model=small_cnn"], "--model own_module:build gives the net: leave one"),
        (["--model", "own_module:build", "model.width=2"], "model.width= says which net a recipe builds"),
        (["--model", "own_module:build", "recipe=denoiser"], "recipe=denoiser here has a defense of its own"),
        (["--model", "own_module:build", "recipe=standrad"], "no recipe 'standrad'; did you mean standard"),
        (["--model", "own_module:build", "optimzer.lr=3"], "the recipe has no optimzer.lr; did you mean optimizer.lr?"),
        (["--model", "own_module:nothing"], "own_module has no nothing"),
        (["--model", "nowhere_at_all:build"], "cannot import nowhere_at_all"),
        (["--model", "own_module"], "must be module:function, such as my.module:build, got 'own_module'"),
        (["--model", "own_module:build", "--weights", "own_module.py"], "cannot be read safely"),
        (["--model", "own_module:build", "--weights", "other.pt"], "do not fit SmallCNN"),
        (["--model", "own_module:build", "++verdict=long"], "profile must be one of quick, full, got 'long'"),
        (["--model", "own_module:build", "runs/standard"], "a checkpoint or --model"),
        (["--model", "own_module:build", "data=mnist", "--data", "mnist"], "--data and data= are given twice"),
        (["--model", "own_module:build", "data.test_size=3", "--n", "3"], "--n and data.test_size= are given twice"),
        (["runs/a", "runs/b"], "one checkpoint at a time, got runs/a and runs/b"),
        (["runs/a", "--n", "3"], "--n go with --model"),
        (["sweep=linf"], "which checkpoint"),
    ],
)
def test_what_makes_no_sense_is_one_error(flags: list[str], message: str, run: Run, own: Path, capsys: Capture) -> None:
    torch.save({"weight": torch.zeros(1)}, own / "other.pt")
    assert run("evaluate", *flags) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (own / "runs").exists() or not list((own / "runs").glob("*"))
