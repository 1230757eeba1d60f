"""Layers: what is not known is named, and nothing is bounded that the net does not do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustlit.certify import IBP, UnknownLayerError
from robustlit.defenses import RandomJumpReLUDefense
from robustlit.models import SmallCNN


def _run(net: nn.Module) -> None:
    IBP(0.1).run(net, torch.rand(2, 1, 4, 4), torch.zeros(2).long())


def test_an_unknown_layer_is_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(UnknownLayerError, match=r"no bounds are known of gelu, which GELU .* calls"):
        _run(net)


class _Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.last = kind, nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.kind == "branch" and x.mean() > 0:
            x = x + 1
        if self.kind == "comparison" and x == 0:
            x = x + 1
        if self.kind == "product":
            x = x * x
        if self.kind == "dropout":
            x = nn.functional.dropout(x)
        if self.kind == "alpha":
            x = torch.add(x, x, alpha=2)
        if self.kind == "padded with a value":
            x = nn.functional.pad(x, (1, -1), value=0.5)
        if self.kind == "view in place":
            part = x.view(-1, 16)
            part.relu_()
        if self.kind == "slice in place":
            x[:, :4].relu_()
        if self.kind in _OPERATORS:
            x = _OPERATORS[self.kind](x)
        return self.last(x)


_OPERATORS = {
    "power": lambda x: x**2,
    "absolute": abs,
    "inverse": lambda x: 1 / (x + 2),
    "matrix": lambda x: x @ torch.ones(16, 16),
    "loop": lambda x: torch.stack(list(x)),
    "reversed batch": lambda x: x[[1, 0]],
    "part of the batch": lambda x: x[:1],
    "moved batch": lambda x: x.view(-1, 4, 2, 2)[:, [0, 1], :, [0, 1]].flatten(1),
    "assignment": lambda x: x.__setitem__(0, 1.0),
    "modulo": lambda x: x % 1,
}


@pytest.mark.parametrize(
    "kind",
    ["branch", "comparison", "product", "dropout", "alpha", "padded with a value", "view in place", "slice in place",
     *_OPERATORS],
)  # fmt: skip
def test_what_cannot_be_bounded_is_an_error(kind: str) -> None:
    with pytest.raises(UnknownLayerError):
        _run(_Odd(kind))


class _Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        swapped = x[:, [2, 1, 0]]
        return self.last(torch.cat([swapped[:, :, ::2].flatten(1), x[:, 0:1, 1:3, None].flatten(1)], 1))


def test_a_slice_of_a_linear_net_is_bounded_exactly() -> None:
    net, x = _Sliced(), torch.rand(5, 3, 4, 4) * 0.5 + 0.25
    logits = net(x)
    y = logits.argmax(1)
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad((net(leaf)[:, 1] - net(leaf)[:, 0]).sum(), leaf)
    exact = (logits[:, 1] - logits[:, 0]).abs() / slope.abs().flatten(1).sum(1)  # inside the box at these budgets
    radius = IBP(0.05, rounds=40).run(net, x, y).radius
    inside = exact < 0.25
    assert inside.any()
    torch.testing.assert_close(radius[inside].float(), exact[inside], rtol=0.02, atol=1e-5)
    assert (radius[inside] <= exact[inside]).all()


class _Autocast(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


def test_a_net_that_turns_autocast_on_is_not_proven_for_float32() -> None:
    layers = nn.Flatten(), nn.Linear(16, 2)
    with pytest.raises(ValueError, match="turns autocast on in its own forward"):
        _run(_Autocast(*layers))
    with torch.autocast("cpu", torch.bfloat16):  # of the caller: turned off
        _run(nn.Sequential(*layers))


def test_a_random_net_is_an_error() -> None:
    with pytest.raises(ValueError, match="RandomizedSmoothing"):
        _run(RandomJumpReLUDefense(SmallCNN(image_size=4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_net_in_half_precision_is_not_proven_for_float32(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"computes in {str(dtype)[6:]}.*model.float"):
        _run(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).to(dtype))


def test_the_mode_of_the_net_is_restored() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 2)).train()
    _run(net)
    assert all(module.training for module in net.modules())
