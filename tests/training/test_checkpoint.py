"""Checkpoints are loaded with their weights, without running code from them."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit.models import BaseCNN, SmallCNN, TimmNet
from robustlit.training import CheckpointError, load_classifier, read_checkpoint
from robustlit.training.checkpoint import pack
from robustlit.training.stored import NETS, check_names

MODEL: dict[str, Any] = {"_target_": "robustlit.models.SmallCNN", "num_classes": 10, "in_chans": 1, "image_size": 28}


def save(path: Path, net: nn.Module, model: dict[str, Any] | None) -> Path:
    weights = {f"net.{k}": v for k, v in net.state_dict().items()}
    config = None if model is None else {"model": model}
    torch.save({"state_dict": weights, "robustlit": pack(config)}, path)
    return path


def test_the_net_is_rebuilt_with_its_weights(tmp_path: Path, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    path = save(tmp_path / "a.ckpt", net, MODEL)
    loaded, config = load_classifier(path)
    assert config == {"model": MODEL}
    assert not loaded.training
    assert torch.equal(loaded(digits[0][:20]), net(digits[0][:20]))


def test_a_run_folder_means_its_best_checkpoint_else_its_last(tmp_path: Path, net: nn.Module) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"without checkpoints/best\.ckpt"):
        read_checkpoint(tmp_path)
    save(folder / "last.ckpt", SmallCNN(), MODEL)
    last = load_classifier(tmp_path)[0].state_dict()
    save(folder / "best.ckpt", net, MODEL)
    best = load_classifier(tmp_path)[0].state_dict()
    assert torch.equal(best["classifier.0.weight"], net.state_dict()["classifier.0.weight"])
    assert not torch.equal(best["classifier.0.weight"], last["classifier.0.weight"])


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["PLANTED"],)


def test_a_pickle_with_code_is_an_error_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    torch.save({"state_dict": {}, "robustlit": pack(None), "x": Malicious()}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"can be read safely: it holds whole Python objects \(\w+\.mkdir\)"):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "robustlit.models.cnn.nn.Linear",
        "robustlit.models.count_parameters",
        "robustlit.models.NoSuchNet",
        "robustlit.training.checkpoint.build_net",
    ],
)
def test_a_recipe_that_names_untrusted_code_is_an_error(tmp_path: Path, net: nn.Module, target: str) -> None:
    path = save(tmp_path / "bad.ckpt", net, {"_target_": target})
    with pytest.raises(CheckpointError, match=target.replace(".", r"\.")):
        load_classifier(path)


def test_a_nested_target_is_checked() -> None:
    deep = {"attacks": {"a": {"_target_": "robustlit.attacks.PGD"}, "b": [{"_target_": "subprocess.run"}]}}
    with pytest.raises(CheckpointError, match=r"subprocess\.run"):
        check_names(deep, {"robustlit.attacks.PGD"})


def test_own_packages_can_be_trusted() -> None:
    check_names({"_target_": "torch.nn.Linear"}, NETS, ["torch.nn"])


def test_missing_damaged_and_foreign_files(tmp_path: Path, net: nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "torn.ckpt").write_bytes(save(tmp_path / "a.ckpt", net, MODEL).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "torn.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save(net.state_dict(), tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not written by robustlit"):
        read_checkpoint(tmp_path / "foreign.ckpt")
    torch.save({"state_dict": {}, "robustlit": {"format": 99}}, tmp_path / "newer.ckpt")
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(tmp_path / "newer.ckpt")


def test_weights_without_a_recipe_need_the_net(tmp_path: Path, net: nn.Module) -> None:
    path = save(tmp_path / "a.ckpt", net, None)
    with pytest.raises(CheckpointError, match="pass the net"):
        load_classifier(path)
    loaded, config = load_classifier(path, net=SmallCNN())
    assert config is None
    assert torch.equal(loaded.state_dict()["classifier.0.weight"], net.state_dict()["classifier.0.weight"])
    with pytest.raises(CheckpointError, match="do not fit BaseCNN"):
        load_classifier(path, net=BaseCNN())


def test_a_pretrained_net_is_rebuilt_without_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = partial(TimmNet, "test_resnet", num_classes=10, in_chans=1, image_size=28)
    trained = build(mean=[0.4], std=[0.2])
    path = save(tmp_path / "a.ckpt", trained, {**MODEL, "_target_": "robustlit.models.TimmNet", "name": "test_resnet",
                                               "pretrained": True, "mean": None, "std": None})  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded, _ = load_classifier(path)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(x), trained.eval()(x))
