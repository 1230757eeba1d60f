"""Classifiers whose robustness is known without attacking them, and small evaluations made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlit.results import Evaluation


class LinearNet(nn.Module):
    """Two classes, logits w (x - 1/2) and its negative, in float64: broken at L-inf distance |w (x - 1/2)| / |w|_1."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        score = (x - 0.5).flatten(1) @ self.w
        return torch.stack([score, -score], 1)


class Counting(nn.Module):
    """Hands inputs on and counts the examples that went through, forwards and backwards."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Rounding(nn.Module):
    """A defense that rounds pixels to black or white; its twin lets gradients through."""

    stochastic = False

    def __init__(self, net: nn.Module, differentiable: bool = False) -> None:
        super().__init__()
        self.net, self.differentiable = net, differentiable

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x > 0.5).to(x.dtype)
        if self.differentiable:
            rounded = rounded + x - x.detach()
        return self.net(rounded)

    def attack_view(self) -> nn.Module:
        return Rounding(self.net, differentiable=True)

    def undefended(self) -> nn.Module:
        return self.net


@pytest.fixture
def linear() -> tuple[LinearNet, Tensor, Tensor, Tensor]:
    """A linear net, images (40, 1, 4, 4) away from the box's faces, their classes and their L-inf distances."""
    draws = torch.Generator().manual_seed(3)
    w = torch.randn(16, dtype=torch.float64, generator=draws)
    side = torch.randint(0, 2, (40,), generator=draws) * 2 - 1
    reach = torch.rand(40, dtype=torch.float64, generator=draws) * 0.27 + 0.01
    x = 0.5 + (side * reach)[:, None] * w.sign() + 0.01 * torch.randn(40, 16, dtype=torch.float64, generator=draws)
    score = (x - 0.5) @ w
    return LinearNet(w), x.view(40, 1, 4, 4), (score < 0).long(), (score.abs() / w.abs().sum()).detach()


@pytest.fixture
def counting() -> type[Counting]:
    return Counting


@pytest.fixture
def rounding() -> type[Rounding]:
    return Rounding


@pytest.fixture
def table() -> Callable[..., Evaluation]:
    """Makes an Evaluation of rows (index, attack, eps, linf or None where unbroken); the rest can be given."""

    def make(
        rows: list[tuple[int, str, float, float | None]], meta: dict[str, Any] | None = None, **given: Any
    ) -> Evaluation:
        filled = []
        for index, attack, eps, reach in rows:
            broken = reach is not None
            at = reach if reach is not None else eps
            filled.append(
                {
                    "index": index,
                    "label": 1,
                    "clean": reach != 0,
                    "attack": attack,
                    "knowledge": "adaptive",
                    "norm": "linf",
                    "eps": eps,
                    "success": broken,
                    "prediction": 2 if broken else 1,
                    "l0": 10.0 * at,
                    "l1": 100.0 * at,
                    "l2": 20.0 * at,
                    "linf": at,
                    "forwards": 3,
                    "backwards": 2,
                    **given,
                }
            )
        columns: dict[str, Any] = {name: pd.DataFrame(filled)[name].to_numpy() for name in filled[0]}
        return Evaluation.from_columns(columns, meta or {})

    return make
