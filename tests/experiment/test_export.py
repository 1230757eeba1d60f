"""Exports answer as the net does, and say what they take and give."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit.defenses import RandomJumpReLUDefense
from robustlit.experiment import export as module
from robustlit.experiment.export import export
from robustlit.experiment.recipes import ConfigError
from robustlit.models import SmallCNN

Run = Callable[..., int]
SMALL = {"_target_": "robustlit.models.SmallCNN", "num_classes": 4, "in_chans": 3, "image_size": 12,
         "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}  # fmt: skip
X = torch.rand(5, 3, 12, 12)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")), reason="onnx is not installed"
)


def small() -> nn.Module:
    return SmallCNN(4, 3, 12, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2]).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder with one checkpoint."""

    def save(net: nn.Module, model: dict[str, Any]) -> Path:
        place = tmp_path / "runs" / "mine" / "checkpoints" / "best.ckpt"
        place.parent.mkdir(parents=True)
        weights = {f"net.{key}": value for key, value in net.state_dict().items()}
        content = {"format": 1, "config": {"model": model, "data": {"_target_": "robustlit.data.CIFAR10"}}}
        torch.save({"state_dict": weights, "robustlit": content}, place)
        return tmp_path / "runs" / "mine"

    return save


def test_a_state_dict_and_what_must_be_known_of_it(
    saved: Callable[..., Path], run: Run, capsys: Any, table: Callable[..., Any]
) -> None:
    net = small()
    folder = saved(net, SMALL)
    table([(0, "pgd", 0.1, None)], {"class_names": ["ant", "bee", "cow", "dog"]}).save(folder / "evaluation")
    assert run("export", str(folder)) == 0
    file = folder / "mine.pt"
    assert capsys.readouterr().out == f"{file}\n{file}.json\n"
    again = small()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(X), net(X))
    card = json.loads(Path(f"{file}.json").read_text())
    assert card["input"] == {"shape": ["batch", 3, 12, 12], "dtype": "float32", "range": [0.0, 1.0],
                             "channels": "red, green, blue"}  # fmt: skip
    assert card["output"] == "logits (batch, 4)"
    assert (card["num_classes"], card["classes"]) == (4, ["ant", "bee", "cow", "dog"])
    layer = card["normalisation"]["layers"][0]
    assert layer["layer"] == "normalize"
    assert layer["mean"] == pytest.approx([0.5, 0.4, 0.3])
    assert (card["net"], card["defense"], card["stochastic"]) == ("SmallCNN", None, False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_programs_answer_as_the_net(saved: Callable[..., Path], tmp_path: Path) -> None:
    net = small()
    folder = saved(net, SMALL)
    file, card = export(folder, "torchscript")
    assert torch.allclose(torch.jit.load(str(file))(X), net(X), atol=1e-5)
    assert json.loads(card.read_text())["largest_difference_of_logits"] < 1e-4
    file, _ = export(folder, "pt2", tmp_path / "net.pt2")
    assert torch.allclose(torch.export.load(file).module()(X), net(X), atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_onnx_answers_as_the_net_with_either_runtime(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    net = small()
    folder = saved(net, SMALL)
    file, _ = export(folder, "onnx")
    found = ReferenceEvaluator(onnx.load(file)).run(None, {"images": X.numpy()})[0]
    assert torch.allclose(torch.from_numpy(found), net(X), atol=1e-4)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    export(folder, "onnx")


def test_a_missing_package_is_named(saved: Callable[..., Path], run: Run, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run("export", str(saved(small(), SMALL)), "--format", "onnx") == 1
    assert capsys.readouterr().err == "error: --format=onnx needs the package onnx: pip install onnx onnxscript\n"


@pytest.mark.filterwarnings("ignore")
def test_an_export_that_answers_otherwise_is_not_written(saved: Callable[..., Path], monkeypatch: Any) -> None:
    folder = saved(small(), SMALL)

    def wrong(net: nn.Module, images: Tensor, **more: Any) -> Any:
        return trace(nn.Sequential(net, nn.Softmax(1)), images, check_trace=False)

    trace = torch.jit.trace
    monkeypatch.setattr(module.torch.jit, "trace", wrong)
    with pytest.raises(ConfigError, match=r"answers otherwise than SmallCNN .*not written"):
        export(folder, "torchscript")
    assert [file.name for file in folder.iterdir()] == ["checkpoints"]


def test_a_defense_is_named_and_a_random_one_refused_as_a_graph(saved: Callable[..., Path], tmp_path: Path) -> None:
    target = {"_target_": "robustlit.defenses.RandomJumpReLUDefense", "low": 0.1, "high": 0.2, "net": SMALL}
    folder = saved(RandomJumpReLUDefense(small(), 0.1, 0.2), target)
    with pytest.raises(ConfigError, match="RandomJumpReLUDefense draws anew for every image"):
        export(folder, "pt2")
    card = json.loads(export(folder)[1].read_text())
    assert (card["defense"], card["stochastic"]) == ("RandomJumpReLUDefense", True)
    assert "low" in card["recipe_of_the_net"]


def test_errors(saved: Callable[..., Path], run: Run, capsys: Any) -> None:
    folder = str(saved(small(), SMALL))
    for words, message, code in (
        ([folder, "--format=h5"], "--format is one of", 2),
        ([folder, folder], "one run at a time", 2),
        (["nowhere"], "there is no checkpoint at nowhere", 1),
    ):
        assert run("export", *words) == code
        assert message in capsys.readouterr().err
