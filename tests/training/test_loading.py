"""robustlit.load: the classifier of a run from Python, as safely as `robustlit evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import robustlit
from robustlit.defenses import JumpReLUDefense
from robustlit.models import SmallCNN
from robustlit.training import CheckpointError

SMALL = {"_target_": "robustlit.models.SmallCNN"}
X = torch.rand(2, 1, 28, 28)


class Mine(SmallCNN):
    """A class of the user's own."""


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder with one checkpoint."""

    def save(net: Any, model: Any, name: str = "best") -> Path:
        place = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        place.parent.mkdir(parents=True, exist_ok=True)
        weights = {f"net.{key}": value for key, value in net.state_dict().items()}
        config = None if model is None else {"model": model, "data": {}}
        torch.save({"state_dict": weights, "robustlit": {"format": 1, "config": config}}, place)
        return tmp_path / "run"

    return save


def test_the_best_checkpoint_of_a_run_comes_ready_to_attack(saved: Callable[..., Path]) -> None:
    best, last = SmallCNN(), SmallCNN()
    run = saved(best, SMALL)
    saved(last, SMALL, "last")
    net = robustlit.load(run)
    assert not net.training
    assert torch.equal(net(X), best.eval()(X))
    assert torch.equal(robustlit.load(run, checkpoint="last")(X), last.eval()(X))
    assert torch.equal(robustlit.load(str(run / "checkpoints" / "last.ckpt"))(X), last(X))


def test_a_defended_model_comes_with_its_defense(saved: Callable[..., Path]) -> None:
    defended = JumpReLUDefense(SmallCNN(), 0.1)
    target = {"_target_": "robustlit.defenses.JumpReLUDefense", "kappa": 0.1, "net": SMALL}
    net: Any = robustlit.load(saved(defended, target))
    assert isinstance(net, JumpReLUDefense)
    assert torch.equal(net(X), defended.eval()(X))
    assert net.attack_view() is not None


def test_a_class_of_the_users_own_needs_trust(saved: Callable[..., Path]) -> None:
    run = saved(Mine(), {"_target_": f"{__name__}.Mine"})
    with pytest.raises(CheckpointError, match=r"no class of robustlit"):
        robustlit.load(run)
    package = __name__.partition(".")[0]
    for trust in (package, [package]):
        assert type(robustlit.load(run, trust=trust)).__name__ == "Mine"


def test_errors_are_one_line(saved: Callable[..., Path], tmp_path: Path) -> None:
    run = saved(SmallCNN(), None)
    for given, error, message in (
        ({"run": tmp_path / "nowhere"}, CheckpointError, "there is no checkpoint at"),
        ({"run": tmp_path}, CheckpointError, "is a folder without checkpoints/best.ckpt"),
        ({"run": run, "checkpoint": "base"}, CheckpointError, "there is no checkpoint at .*base.ckpt"),
        ({"run": run, "checkpoint": "first"}, ValueError, "checkpoint must be one of best, last, base, got 'first'"),
        ({"run": run}, CheckpointError, r"holds weights but no recipe.*pass the net"),
    ):
        with pytest.raises(error, match=message) as raised:
            robustlit.load(**given)
        assert "\n" not in str(raised.value)
    assert isinstance(robustlit.load(run, net=SmallCNN()), SmallCNN)
