"""The nets that the benchmarks attack: trained within seconds to a minute, or the user's own.

Undefended and adversarially trained nets, with BatchNorm and without.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD
from robustlit.attacks.ascent import GradientAscent
from robustlit.data import load_mnist
from robustlit.models import SmallCNN
from robustlit.training.checkpoint import load_classifier


class BatchNormCNN(nn.Sequential):
    """Three convolutions with BatchNorm and dropout: its train mode must not affect an attack."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        layers: list[nn.Module] = []
        for before, after, stride in ((in_chans, 32, 2), (32, 64, 1), (64, 64, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 16, num_classes)
        )


@dataclass(frozen=True)
class Recipe:
    """How a built-in net is trained: `attack` on the inner loop or None, on `digits` training images."""

    build: Callable[[], nn.Module]
    attack: GradientAscent | None
    digits: int
    epochs: int


_RS = FGSM(eps=0.3, random_start=True, step_size=0.25, start_in_box=False)
RECIPES = {
    "undefended": Recipe(SmallCNN, None, 12_000, 1),
    "fgsm": Recipe(SmallCNN, _RS, 12_000, 2),
    "pgd": Recipe(SmallCNN, PGD(eps=0.3, steps=7, step_size=0.1), 12_000, 3),
    "undefended-bn": Recipe(BatchNormCNN, None, 6_000, 1),
    "pgd-bn": Recipe(BatchNormCNN, PGD(eps=0.3, steps=5, step_size=0.12), 6_000, 3),
}


def train(recipe: Recipe, seed: int = 1) -> nn.Module:
    """Train a net by its recipe; eps grows over the first half, else small nets stay at chance."""
    images, labels, _, _ = load_mnist()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = recipe.build().train()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        steps = recipe.epochs * (recipe.digits // 100)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for step in range(steps):
            start = step * 100 % recipe.digits
            x, y = images[start : start + 100].float() / 255, labels[start : start + 100]
            if recipe.attack is not None:
                eps = recipe.attack.eps * min(1.0, 2 * (step + 1) / steps)
                x = recipe.attack.maximise(net, x, partial(F.cross_entropy, target=y, reduction="none"), eps=eps)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def built_in(name: str, cache: Path | None = None) -> nn.Module:
    """Return a net of `RECIPES`, trained now or read from the folder `cache`, where it is kept."""
    if name not in RECIPES:
        raise SystemExit(f"there is no built-in net called {name}; there are {', '.join(RECIPES)}")
    path = None if cache is None else cache / f"{name}.pt"
    if path is not None and path.is_file():
        net = RECIPES[name].build()
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    net = train(RECIPES[name])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), path)
    return net


def given(model: str, weights: str | None = None) -> nn.Module:
    """Return the user's net: a checkpoint or run folder of robustlit, or `module:function` that returns a net.

    Args:
        model: A path, or an import path relative to the current folder.
        weights: A file with the state dict of the function's net.
    """
    if Path(model).exists() or ":" not in model:
        return load_classifier(model)[0].eval()
    net: nn.Module = _called(model)
    if weights is not None:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()


def test_digits(count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` test digits in [0, 1] and their classes."""
    _, _, images, labels = load_mnist()
    return images[:count].float() / 255, labels[:count].clone()


def images(data: str | None, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` images in [0, 1] and classes that `module:function` returns; test digits for None."""
    if data is None:
        return test_digits(count)
    x, y = _called(data)
    return x[:count], y[:count]


def _called(function: str) -> Any:
    """Call `module:function`, an import path relative to the current folder."""
    sys.path.insert(0, os.getcwd())
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)()
