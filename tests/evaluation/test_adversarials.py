"""save_adversarials: what was found is kept as it was found, also by a sweep that was stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import PGD, DeepFool
from robustlit.evaluation import Sweep, load_adversarials
from robustlit.threat import distance

Digits = tuple[Tensor, Tensor]
ATTACKS: Any = {"pgd": PGD(eps=0.1, steps=3), "deepfool": DeepFool(steps=5)}
GRID = {"linf": [0.05, 0.2]}
NAMES = ["deepfool_l2", "pgd_linf_0.05", "pgd_linf_0.1", "pgd_linf_0.2"]


class Pixels(nn.Module):
    """A linear net of ten classes, which is right on the digits that it was made from."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        means = torch.stack([x[y == k].mean(0).flatten() for k in range(10)])
        self.linear = nn.Linear(784, 10)
        with torch.no_grad():
            self.linear.weight.copy_(means)
            self.linear.bias.copy_(-means.square().sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


@pytest.fixture
def attacked(digits: Digits) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = digits
    return Pixels(x, y), x[:30], y[:30]


def test_every_adversarial_example_is_kept_with_its_number(
    attacked: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, x, y = attacked
    result = evaluate(net, (x, y), ATTACKS, grid=GRID, batch_size=12, folder=tmp_path, save_adversarials=True)
    size = "30 images, 4 attacks and budgets: 0.4 MB in"
    assert capsys.readouterr().err.count(f"save_adversarials: {size} {tmp_path / 'adversarials'}\n") == 1
    assert sorted(folder.name for folder in (tmp_path / "adversarials").iterdir()) == NAMES
    for name in NAMES:
        found = load_adversarials(tmp_path, name)
        assert found["index"].tolist() == list(range(30))
        assert torch.equal(found["label"], y)
        assert found["x_adv"].dtype == torch.float32
        answers = net(found["x_adv"]).argmax(1)
        assert torch.equal(answers != y, found["success"])
        broken = found["success"] & found["clean"]
        assert broken.any()
        assert torch.equal(answers[broken], found["prediction"][broken])
        attack, norm, *eps = name.split("_")
        rows = result.table[(result.table["attack"] == attack)]
        if eps:
            rows = rows[rows["eps"] == float(eps[0])]
            assert distance(found["x_adv"], x, "linf").max() <= float(eps[0]) + 1e-6
        assert found["success"].tolist() == rows.sort_values("index")["success"].tolist()
        assert distance(found["x_adv"], x, norm)[broken].tolist() == pytest.approx(
            rows.sort_values("index")[norm][broken.numpy()].tolist()
        )
    assert result.complete


def test_the_table_is_the_same_with_and_without(attacked: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    net, x, y = attacked
    plain = evaluate(net, (x, y), ATTACKS, grid=GRID)
    kept = evaluate(net, (x, y), ATTACKS, grid=GRID, folder=tmp_path, save_adversarials=True)
    assert plain.table.equals(kept.table)
    evaluate(net, (x, y), ATTACKS, folder=tmp_path / "new")
    assert not (tmp_path / "new" / "adversarials").exists()


def test_a_sweep_that_goes_on_writes_what_is_missing(
    attacked: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, y = attacked
    attack, calls = Sweep.attack_batch, list[int]()

    def stopping(self: Sweep, model: nn.Module, x: Tensor, y: Tensor, index: Tensor, *more: Any) -> Any:
        calls.append(int(index[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack(self, model, x, y, index, *more)

    monkeypatch.setattr(Sweep, "attack_batch", stopping)

    def go() -> Any:
        return evaluate(net, (x, y), ATTACKS, batch_size=10, folder=tmp_path, save_adversarials=True)

    assert not go().complete
    shutil.rmtree(tmp_path / "adversarials" / "deepfool_l2")  # of the finished batches too
    (tmp_path / "adversarials" / "pgd_linf_0.1" / "0000010.safetensors").write_bytes(b"damaged")
    assert go().complete
    assert calls == [0, 10, 20, 0, 10, 20]
    assert len(load_adversarials(tmp_path, "deepfool_l2")["index"]) == 30


def test_no_two_budgets_share_a_folder(attacked: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    net, x, y = attacked
    grid = {"linf": [0.02, 0.0200000001, np.float32(8 / 255)]}
    attacks = {"pgd": PGD(eps=8 / 255, steps=2)}
    result = evaluate(net, (x, y), attacks, grid=grid, folder=tmp_path, save_adversarials=True)
    assert result.budgets("pgd") == [0.02, 8 / 255]
    names = ["pgd_linf_0.02", "pgd_linf_0.03137255"]
    assert sorted(folder.name for folder in (tmp_path / "adversarials").iterdir()) == names
    for name, eps in zip(names, (0.02, 8 / 255), strict=True):
        assert distance(load_adversarials(tmp_path, name)["x_adv"], x, "linf").max() == pytest.approx(eps, abs=1e-6)
    assert Sweep([PGD(eps=0.3)], {"linf": [0.10001, 0.10002]}).budgets_of("pgd") == [0.10001, 0.10002, 0.3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../c"], r"'\.\./c_linf_0\.1' cannot name a folder \(no /.*give that attack another name"),
        (["a\\b"], "cannot name a folder"),
        (["a\n"], "cannot name a folder"),
        (["a" * 300], "at most 255 bytes"),
        (["pgd", "pgd-greybox"], "two attacks would share the folder 'pgd-greybox_linf_0.1'"),
    ],
)
def test_a_name_that_is_no_folder_is_refused_before_an_attack(
    names: list[str], message: str, attacked: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    net, x, y = attacked
    attacks: Any = dict.fromkeys(names, PGD(eps=0.1, steps=2))
    given: Any = {"knowledge": ("adaptive", "greybox"), "folder": tmp_path / "run"}
    with pytest.raises(ValueError, match=message):
        evaluate(net, (x, y), attacks, **given, save_adversarials=True)
    assert list(tmp_path.iterdir()) == []
    assert evaluate(net, (x[:2], y[:2]), attacks, **given).n == 2  # a table takes any name


def test_errors(attacked: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = attacked
    with pytest.raises(ValueError, match="save_adversarials needs a folder"):
        evaluate(net, (x, y), ATTACKS, save_adversarials=True)
    with pytest.raises(
        FileNotFoundError, match="no adversarial examples named pgd; evaluate with save_adversarials=true"
    ):
        load_adversarials(tmp_path, "pgd")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"30 images, 2 attacks and budgets: 0.2 MB in .* and 0.0 MB are free"):
        evaluate(net, (x, y), ATTACKS, folder=tmp_path, save_adversarials=True)
