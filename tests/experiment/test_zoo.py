"""`robustlit evaluate --robustbench`, against a stand-in with the signatures of RobustBench (commit 78fcc9e)."""

from __future__ import annotations

import enum
import inspect
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.zoo import ZooNet
from robustlit.models import SmallCNN

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


class BenchmarkDataset(enum.Enum):
    cifar_10 = "cifar10"
    cifar_100 = "cifar100"
    imagenet = "imagenet"


class ThreatModel(enum.Enum):
    Linf = "Linf"
    L2 = "L2"
    corruptions = "corruptions"


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Install the stand-in, a clone in `clone/`; returns what was loaded."""
    calls: list[tuple[Any, ...]] = []
    names = {BenchmarkDataset.cifar_10: {ThreatModel.Linf: ["Wong2020Fast", "Rice2020Overfitting"], ThreatModel.L2: []}}

    def load_model(model_name: str, model_dir: str | Path = "./models",
                   dataset: str | BenchmarkDataset = BenchmarkDataset.cifar_10,
                   threat_model: str | ThreatModel = ThreatModel.Linf, custom_checkpoint: str = "",
                   norm: str | None = None) -> nn.Module:  # fmt: skip
        known = {name: name for name in names[BenchmarkDataset(dataset)][ThreatModel(threat_model)]}
        calls.append((known[model_name], str(model_dir), dataset, threat_model))
        if model_name == "Rice2020Overfitting":
            raise RuntimeError("Failed to retrieve file url:\n\n\tToo many users\nhave viewed it")
        torch.manual_seed(0)
        return SmallCNN(in_chans=3, image_size=32).train()

    package = types.ModuleType("robustbench")
    package.__path__ = []
    modules = {
        "utils": {"load_model": load_model, "__file__": str(tmp_path / "clone" / "robustbench" / "utils.py")},
        "model_zoo": {
            "model_dicts": {d: {t: dict.fromkeys(n) for t, n in v.items()} for d, v in names.items()},
            "__path__": [],
        },
        "model_zoo.enums": {"BenchmarkDataset": BenchmarkDataset, "ThreatModel": ThreatModel},
    }
    monkeypatch.setitem(sys.modules, "robustbench", package)
    for name, content in modules.items():
        module = types.ModuleType(f"robustbench.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, f"robustbench.{name}", module)
    return calls


def write_entry(folder: Path, **figures: str) -> None:
    place = folder / "model_info" / "cifar10" / "Linf"
    place.mkdir(parents=True)
    entry = {"eps": "8/255", "clean_acc": "83.34", "autoattack_acc": "43.21", **figures}
    (place / "Wong2020Fast.json").write_text(json.dumps(entry))


def pictures(folder: Path) -> list[str]:
    """Ten class folders with a random picture each; the flags that evaluate on them."""
    from torchvision.utils import save_image

    for number in range(20):
        place = folder / "pictures" / ("train", "test")[number // 10] / str(number % 10)
        place.mkdir(parents=True)
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(number)), place / "0.png")
    return ["--data", "image_folder", "data.root=pictures", "data.image_size=32", "data.num_workers=0"]


@pytest.mark.slow
def test_a_net_of_the_zoo_is_attacked_beside_its_leaderboard(
    run: Run, loaded: list[tuple[Any, ...]], tmp_path: Path, capsys: Capture
) -> None:
    write_entry(tmp_path / "clone")
    assert run("evaluate", "--robustbench", "Wong2020Fast", *pictures(tmp_path), "logger=none") == 0
    assert loaded == [("Wong2020Fast", "models", "cifar10", "Linf")]
    assert "leaderboard (cifar10 Linf, eps 8/255): clean 83.34 %, AutoAttack 43.21 %" in capsys.readouterr().err
    results = json.loads((tmp_path / "runs" / "robustbench.Wong2020Fast-eval" / "results.json").read_text())
    assert results["n"] == 10
    assert list(results["attacks"]) == ["auto_attack"]
    assert (results["worst_case"]["norm"], results["worst_case"]["eps"]) == ("linf", pytest.approx(8 / 255))


def test_what_stands_in_the_way_is_one_line(run: Run, loaded: list[tuple[Any, ...]], capsys: Capture) -> None:
    for words, code, message in (
        (["Wong2020Fats"], 1, "has no net 'Wong2020Fats' for cifar10 and Linf; did you mean Wong2020Fast?"),
        (["Wong2020Fast", "--threat=L2"], 1, "has no net 'Wong2020Fast' for cifar10 and L2; there are 0"),
        (["Rice2020Overfitting"], 1, "cannot load Rice2020Overfitting: RuntimeError: Failed to retrieve file url: Too "
         "many users have viewed it; it downloads weights from Google Drive, or from Hugging Face for nets of timm: "
         "where these cannot be reached, put the file at models/cifar10/Linf/Rice2020Overfitting.pt"),
        (["A", "--dataset=svhn"], 1, "--dataset must be one of cifar10, cifar100, imagenet, got 'svhn'"),
        (["A", "--dataset=cifar100", "--threat=l2"], 1, "--threat must be one of linf for cifar100, got 'l2'"),
        (["A", "--dataset=imagenet"], 2, "--dataset imagenet needs images: --data image_folder"),
        (["A", "norm=l2"], 2, "takes its norm from --threat: --threat l2"),
        (["A", "--weights=w.pt"], 2, "--robustbench A gives the net with its weights: leave --weights out"),
    ):  # fmt: skip
        assert run("evaluate", "--robustbench", *words, "logger=none") == code
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    assert run("evaluate", "runs/x", "--threat=l2") == 2
    assert "--dataset and --threat go with --robustbench" in capsys.readouterr().err


def test_the_leaderboards_figure_is_looked_up_or_said_to_be_missing(
    loaded: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = ZooNet("Wong2020Fast")
    assert "not in this installation of RobustBench; run from a clone" in net.leaderboard()
    write_entry(tmp_path, external="43.10")
    assert "clean 83.34 %, AutoAttack 43.21 %, stronger attacks 43.10 %" in net.leaderboard()
    (tmp_path / "model_info" / "cifar10" / "Linf" / "Wong2020Fast.json").write_text('{"clean_acc": "?"}')
    assert "cannot be read: ValueError" in net.leaderboard()


def test_without_robustbench_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(ConfigError, match=r"needs RobustBench, which cannot be imported .*\[robustbench\]"):
        ZooNet("Wong2020Fast").load()


def test_it_returns_an_eval_net(loaded: list[tuple[Any, ...]]) -> None:
    assert not ZooNet("Wong2020Fast").load().training


@pytest.mark.peers
def test_the_stand_in_has_robustbenchs_signature(
    loaded: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = inspect.signature(sys.modules["robustbench.utils"].load_model)
    for name in [name for name in sys.modules if name.split(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    real = pytest.importorskip("robustbench.utils")
    assert list(inspect.signature(real.load_model).parameters) == list(stand_in.parameters)
