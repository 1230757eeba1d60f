"""Nets of the user in recipes, and weights that training starts from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from robustlit.experiment.build import _keep_weights
from robustlit.experiment.composition import composed
from robustlit.experiment.own_net import recipes_net, weights_of, without_weights
from robustlit.experiment.recipes import ConfigError, recipe_files, recipes_folder, register_recipes, stored
from robustlit.models import SmallCNN
from robustlit.objectives import IBPTraining, Standard
from robustlit.training import CheckpointError, load_classifier
from robustlit.training.checkpoint import read_checkpoint

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
MODULE = """
from robustlit.models import SmallCNN

class Mine(SmallCNN):
    pass
def build():
    return Mine().eval()
def zoo(weights=None):
    net = Mine()
    net.asked = weights
    return net
"""
TINY = ["data.train_size=300", "data.val_size=100", "data.test_size=40", "trainer.max_epochs=1", "logger=none",
        "trainer.precision=32-true", "sweep=none", "~callbacks.images"]  # fmt: skip


@pytest.fixture
def state() -> dict[str, Tensor]:
    return SmallCNN().state_dict()


@pytest.fixture
def mine(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, the current one, with a module of the user and weights."""
    (tmp_path / "my_nets.py").write_text(MODULE)
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("my_nets", None)


def recipe(*overrides: str) -> Any:
    register_recipes(recipe_files())
    return composed(["recipe=standard", *overrides])


@pytest.mark.parametrize("target", ["my_nets.Mine", "my_nets.build"])
def test_a_recipe_builds_a_net_of_the_user_and_fills_it(
    target: str, mine: Path, state: dict[str, Tensor], capsys: Capture
) -> None:
    config = recipe("model=own", f"model._target_={target}", "model.weights=w.pt")
    net = recipes_net(config)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.training
    assert capsys.readouterr().err == "Mine starts from the weights in w.pt\n"
    fresh = recipes_net(config, filled=False)
    assert not torch.equal(fresh.state_dict()["features.0.weight"], state["features.0.weight"])
    assert capsys.readouterr().err == ""


def test_an_argument_weights_of_the_users_own_is_not_taken_away(mine: Path) -> None:
    config = recipe("model=own", "model._target_=my_nets.zoo", "model.weights=IMAGENET")
    recipes_net(recipe("model=own", "model._target_=my_nets.build"))  # finds the module
    assert recipes_net(config).asked == "IMAGENET"
    assert weights_of(config.model) is None
    assert without_weights(stored(config))["model"]["weights"] == "IMAGENET"


def test_every_net_that_comes_with_robustlit_takes_weights() -> None:
    for file in sorted((recipes_folder() / "model").glob("*.yaml")):
        assert OmegaConf.load(file).weights is None, file


def test_a_defense_in_the_group_takes_the_weights_of_its_net(tmp_path: Path) -> None:
    from robustlit.models import BaseCNN

    base = BaseCNN()
    torch.save(base.state_dict(), tmp_path / "w.pt")
    filled = {"num_classes": 10, "in_chans": 1, "image_size": 28}
    config = recipe("model=base_cnn_jumprelu", *(f"model.net.{k}={v}" for k, v in filled.items()))
    config.model.weights = str(tmp_path / "w.pt")
    net: Any = recipes_net(config)
    assert torch.equal(net.net.features[0].weight, base.features[0].weight)


def test_weights_that_do_not_fit_name_the_key(mine: Path) -> None:
    config = recipe(
        "model=small_cnn", "model.weights=w.pt", "model.num_classes=10", "model.in_chans=3", "model.image_size=28"
    )
    with pytest.raises(ConfigError, match=r"^model.weights w.pt do not fit SmallCNN: features.0.weight is \(16, 1, 4"):
        recipes_net(config)


@pytest.mark.parametrize(("model", "kept"), [({"weights": "w.pt"}, True), ({"pretrained": True}, True), ({}, False)])
def test_interval_training_keeps_trained_weights(model: dict[str, Any], kept: bool, capsys: Capture) -> None:
    net, objective = SmallCNN(image_size=8, hidden=16), IBPTraining(0.1)
    before = [p.clone() for p in net.parameters()]
    _keep_weights(objective, OmegaConf.create(model))
    objective.set_progress(0.0)
    objective(net, torch.rand(4, 1, 8, 8), torch.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)) == kept
    assert ("IBPTraining keeps the trained weights" in capsys.readouterr().err) == kept
    _keep_weights(Standard(), OmegaConf.create(model))  # draws none


@pytest.mark.slow
def test_training_starts_from_the_weights_and_stores_no_path(run: Run, mine: Path, capsys: Capture) -> None:
    command = ["train", "recipe=standard", "model=own", "model._target_=my_nets.Mine", "model.weights=w.pt", *TINY]
    assert run(*command, "optimizer.lr=1e-9", "schedule=null", "trainer.max_epochs=1", "name=a") == 0
    folder = mine / "runs" / "a"
    net, _ = load_classifier(folder, trusted=["my_nets"])
    wanted = torch.load(mine / "w.pt", weights_only=True)["model"]
    for name, value in net.state_dict().items():
        assert torch.allclose(value, wanted[f"module.{name}"], atol=1e-4)
    assert "weights" not in read_checkpoint(folder)["robustlit"]["config"]["model"]
    assert OmegaConf.load(folder / "config.yaml").model.weights == "w.pt"
    # Neither a resumed run nor an evaluation looks for the file again.
    (mine / "w.pt").unlink()
    capsys.readouterr()
    more = ["optimizer.lr=1e-9", "schedule=null", "trainer.max_epochs=2", "name=a", "resume=auto"]
    assert run(*command, *more) == 0
    assert "starts from" not in capsys.readouterr().err
    assert run("evaluate", "runs/a", "trust=[my_nets]", "logger=none") == 0
    assert "weights" not in OmegaConf.load(mine / "runs" / "a-eval" / "config.yaml").model
    assert run(*command, "name=b") == 1
    assert "error: model.weights: there is no file w.pt" in capsys.readouterr().err
    assert not (mine / "runs" / "b").exists()


@pytest.mark.slow
def test_a_defense_goes_around_the_weights_without_another_training(run: Run, mine: Path, capsys: Capture) -> None:
    sizes = ["model=small_cnn", "model.weights=w.pt"]
    assert run("train", "recipe=jumprelu", *sizes, *TINY) == 0
    shown = capsys.readouterr().err
    assert "is trained first" not in shown
    net: Any = load_classifier(mine / "runs" / "jumprelu")[0]
    wanted = torch.load(mine / "w.pt", weights_only=True)["model"]
    assert torch.equal(net.undefended().features[0].weight, wanted["module.features.0.weight"])
    assert run("train", "recipe=jumprelu", *sizes, *TINY, "base=runs/jumprelu", "name=c") == 1
    assert "base=runs/jumprelu and model.weights=w.pt both give the classifier" in capsys.readouterr().err


def test_a_stored_recipe_opens_no_file(tmp_path: Path, mine: Path) -> None:
    model = {"_target_": "robustlit.models.SmallCNN", "weights": "w.pt"}
    state = {f"net.{k}": v for k, v in SmallCNN().state_dict().items()}
    config = {"model": model, "data": {}}
    torch.save({"state_dict": state, "robustlit": {"format": 1, "config": config}}, "x.ckpt")
    with pytest.raises(CheckpointError, match="unexpected keyword argument 'weights'"):
        load_classifier("x.ckpt")


@pytest.mark.slow
def test_adversarial_examples_are_kept_on_request(run: Run, mine: Path, capsys: Capture) -> None:
    from robustlit.evaluation import load_adversarials

    torch.save(SmallCNN().state_dict(), mine / "plain.pt")
    own = ["--model=my_nets:build", "--weights=plain.pt", "--n=20", "sweep=linf", "logger=none", "~callbacks.images"]
    only = [*(f"~sweep.attacks.{a}" for a in ("worst_case", "bim", "pgd")), "eps=0.1", "sweep.grid.linf=[0.05]"]
    assert run("evaluate", *own, *only, "save_adversarials=true", "name=a") == 0
    assert "save_adversarials: 20 images, 2 attacks and budgets: 0.1 MB" in capsys.readouterr().err
    assert load_adversarials(mine / "runs" / "a-eval", "fgsm_linf_0.05")["x_adv"].shape == (20, 1, 28, 28)
    # A checkpoint whose recipe lacks the key, and one whose recipe would fill a disk.
    small = ["model=small_cnn", *TINY, "name=b", "save_adversarials=true"]
    assert run("train", "recipe=standard", *small) == 0
    again = ["runs/b", "sweep=linf", "logger=none", *only[:3], "data.test_size=20"]
    assert run("evaluate", *again) == 0
    assert not (mine / "runs" / "b-eval" / "evaluation" / "adversarials").exists()
    assert run("evaluate", *again, "save_adversarials=true", "name=c") == 0
    assert (mine / "runs" / "c-eval" / "evaluation" / "adversarials").is_dir()


@pytest.mark.slow
def test_an_evaluation_of_other_weights_is_not_taken_for_this_one(run: Run, mine: Path, capsys: Capture) -> None:
    own = ["--model=my_nets:build", "--n=10", "sweep=linf", "logger=none", "~callbacks.images", "resume=auto"]
    only = ["--weights=w.pt", "~sweep.attacks.bim", "~sweep.attacks.pgd", "sweep.grid.linf=[]"]
    for finished in (False, True):
        assert run("evaluate", *own, *only) == 0
        assert ("is finished, there is nothing to do" in capsys.readouterr().err) == finished
    torch.save(SmallCNN().state_dict(), mine / "w.pt")  # trained again, under the same name
    assert run("evaluate", *own, *only) == 0
    assert "is finished" not in capsys.readouterr().err
