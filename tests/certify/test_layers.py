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
        return self.last(x)


@pytest.mark.parametrize(
    "kind", ["branch", "comparison", "product", "dropout", "alpha", "padded with a value", "view in place"]
)
def test_what_cannot_be_bounded_is_an_error(kind: str) -> None:
    with pytest.raises(UnknownLayerError):
        _run(_Odd(kind))


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
