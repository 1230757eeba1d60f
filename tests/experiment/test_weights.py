"""Weights that others trained, from every kind of file that training scripts write."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustlit.experiment.matching import matched
from robustlit.experiment.recipes import ConfigError
from robustlit.experiment.weights import fill
from robustlit.models import Normalize

State = dict[str, Tensor]
X = torch.linspace(0, 1, 2 * 3 * 36).view(2, 3, 6, 6)


def bare(channels: int = 3) -> nn.Sequential:
    layers = [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(*layers).eval()


class Named(nn.Module):
    """A net in a wrapper whose attributes have names of their own."""

    def __init__(self, net: nn.Module, mean: float = 0.25) -> None:
        super().__init__()
        self.normalizer, self.network = Normalize([mean] * 3, [0.5] * 3), net

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.normalizer(x))


def normalised(mean: float = 0.25) -> nn.Sequential:
    return nn.Sequential(Normalize([mean] * 3, [0.5] * 3), bare()).eval()


@pytest.fixture
def trained() -> nn.Sequential:
    torch.manual_seed(3)
    net = bare()
    net[1].running_mean.fill_(0.3)
    return net


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def constants(mean: str, std: str) -> State:
    return {mean: torch.full((1, 3, 1, 1), 0.25), std: torch.full((1, 3, 1, 1), 0.5)}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "acc": 0.5},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{}]}},
    "net": lambda state: {"net": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": torch.ones(())},
    "ema": lambda state: {"ema": state},
    "a name nobody knows": lambda state: {"trained": state, "epoch": 3},
    "list of one": lambda state: {"state_dict": [OrderedDict(state)], "acc": 1},
    "nested": lambda state: {"model": {"state_dict": state}},
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "all of them": lambda state: {"state_dict": prefixed("_orig_mod.module.model.")(state)},
    "compiled inside": prefixed("model._orig_mod."),
    "lightning": lambda state: {
        "state_dict": prefixed("net.")(state) | {"val_accuracy.tp": torch.ones(5), "criterion.weight": torch.ones(5)},
        "pytorch-lightning_version": "2.6.0", "hyper_parameters": {"weights": {"a": torch.ones(1)}},
    },
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.")(state)},
    "written before 2018": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "wrapped": lambda state: prefixed("1.")(state) | constants("0.mean", "0.std"),
    "twice, the same": lambda state: {
        **prefixed("module.model.")(state), **prefixed("module.attacker.model.")(state),
        **constants("module.normalizer.new_mean", "module.normalizer.new_std"),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_fills_a_bare_net_and_one_behind_a_normalisation(
    layout: str, trained: nn.Sequential, tmp_path: Path
) -> None:
    state = LAYOUTS[layout](trained.state_dict())
    torch.save(state, tmp_path / "w.pt")
    exact = 3e-3 if layout == "half" else 0
    wants = trained(X), trained((X - 0.25) / 0.5)
    for net, wanted in zip((bare(), normalised(), Named(bare()).eval()), (wants[0], wants[1], wants[1]), strict=True):
        fill(net, str(tmp_path / "w.pt"), "--weights")
        assert torch.allclose(net(X), wanted, rtol=0, atol=exact + 1e-6)


def test_safetensors(trained: nn.Sequential, tmp_path: Path) -> None:
    save_file(prefixed("module.")(trained.state_dict()), tmp_path / "w.safetensors")
    fill(net := bare(), str(tmp_path / "w.safetensors"), "--weights")
    assert torch.equal(net(X), trained(X))
    (tmp_path / "w.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match=r"w.safetensors cannot be read: .*; it is damaged"):
        fill(bare(), str(tmp_path / "w.safetensors"), "--weights")


def test_of_several_state_dicts_the_trained_one_is_taken_and_named(trained: nn.Sequential, tmp_path: Path) -> None:
    other = bare().state_dict()
    torch.save({"state_dict_ema": other, "state_dict": trained.state_dict()}, tmp_path / "w.pt")
    notes = fill(net := bare(), str(tmp_path / "w.pt"), "--weights")
    assert torch.equal(net(X), trained(X))
    assert len(notes) == 1
    assert "it holds state_dict, state_dict_ema: state_dict is taken" in notes[0]
    assert "torch.load(FILE, 'cpu', weights_only=True)['state_dict_ema']" in notes[0]


def test_a_normalisation_that_is_lost_is_named(trained: nn.Sequential, tmp_path: Path) -> None:
    torch.save(normalised().state_dict(), tmp_path / "w.pt")
    (note,) = fill(bare(), str(tmp_path / "w.pt"), "--weights")
    assert "warning: it was saved with a normalisation (0.mean [0.25, 0.25, 0.25], 0.std [0.5, 0.5, 0.5])" in note
    assert "robustlit.models.Normalize" in note
    assert fill(Named(bare()), str(tmp_path / "w.pt"), "--weights") == []
    with pytest.raises(ConfigError, match=r"another normalisation \(0.mean \[0.25, 0.25, 0.25\]"):
        fill(Named(bare(), mean=0.4), str(tmp_path / "w.pt"), "--weights")
    fill(net := normalised(mean=0.4), str(tmp_path / "w.pt"), "--weights")  # by the same names: the file's own
    assert net[0].mean.flatten().tolist() == [0.25] * 3


class Scaled(nn.Module):
    """A net with a trained parameter that is called as a normalisation is."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.sigma = bare(), nn.Parameter(torch.ones(1))


BAD: dict[str, tuple[Callable[[State], Any], str]] = {
    "partial": (lambda s: {k: v for k, v in s.items() if k[0] == "1"}, r"it lacks (1\.)?0\.weight, .* and 1 more$"),
    "more": (lambda s: s | {"6.weight": torch.ones(1)}, "the net has not, 6.weight$"),
    "another part": (lambda s: prefixed("net.")(s) | {"pre.weight": torch.ones(1)}, "the net has not, pre.weight$"),
    "two nets": (lambda s: prefixed("a.")(s) | prefixed("b.")(bare().state_dict()), "two of its parts would fill"),
    "shapes": (lambda s: bare(1).state_dict(), r"0.weight is \(4, 1, 3, 3\) in the file and \(4, 3, 3, 3\)"),
    "integers": (lambda s: {k: v.to(torch.int8) for k, v in s.items()}, "0.weight is torch.int8 in the file"),
    "a cascade": (lambda s: {"state_dict": [s, s, s]}, r"a list of 3 state dicts.*\['state_dict'\]\[0\]"),
    "no weights": (lambda s: {"epoch": 3, "optimizer": {"state": {0: s}}}, "holds epoch, optimizer, and none"),
    "a number": (lambda s: 3, "is a int, and none of it"),
    "a tensor": (lambda s: s["0.weight"], "is a Tensor, and none of it"),
    "not finite": (lambda s: s | {"0.bias": torch.full((4,), torch.nan)}, "holds weights that are not finite"),
    "a whole net": (lambda s: bare(), r"whole Python objects \(torch.nn.*Sequential\).*state_dict\(\), FILE"),
    "one in a checkpoint": (lambda s: {"net": bare()}, r"weights_only=False\)\['state_dict'\]"),
    "a folder": (lambda s: None, "is a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_short_line(case: str, trained: nn.Sequential, tmp_path: Path) -> None:
    change, message = BAD[case]
    file = tmp_path if case == "a folder" else tmp_path / "w.pt"
    if case != "a folder":
        torch.save(change(trained.state_dict()), file)
    for net in (bare(), normalised()):
        with pytest.raises(ConfigError, match=message) as error:
            fill(net, str(file), "--weights")
        assert str(error.value).startswith("--weights")
        assert len(str(error.value)) < 600 + len(str(file))
        assert "\n" not in str(error.value)


def test_a_parameter_is_no_normalisation(trained: nn.Sequential, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"it lacks .*sigma"):
        fill(Scaled(), str(tmp_path / "w.pt"), "--weights")


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_a_program_is_refused_with_the_way_out(trained: nn.Sequential, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(trained, X), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"TorchScript program.*torch\.jit\.load\(.*\)\.state_dict\(\), FILE"):
        fill(bare(), str(tmp_path / "w.pt"), "--weights")


def test_a_net_of_thousands_of_weights_is_matched() -> None:
    own = {f"1.{number}.{name}": torch.zeros(1) for number in range(2_000) for name in ("weight", "bias")}
    theirs = {f"module.encoder{name[1:]}": value for name, value in own.items()}
    found = matched({"0.mean": torch.zeros(1), **own}, theirs, {"0.mean"})
    assert found.pairs["1.1999.weight"] == "module.encoder.1999.weight"
    assert len(found.pairs) == 4_000
