"""Shared by the comparisons with peers: the benchmark's modules, an undefended and a robust net, reasons to skip."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import nets
import peers

from robustlit.models import SmallCNN


@pytest.fixture
def need() -> Callable[[str], None]:
    """Skip unless a peer is installed, with the command that installs it."""

    def check(library: str) -> None:
        if not peers.installed(library):
            pytest.skip(f"{peers.PACKAGES[library]} is not installed: {peers.LINES[library]}")
        peers.load(library)

    return check


@pytest.fixture(scope="session")
def robust_state() -> dict[str, Tensor]:
    """Weights of a SmallCNN after one epoch of FGSM from random starts on 6 000 digits: slightly robust."""
    return nets.train(nets.Recipe(SmallCNN, nets.RECIPES["fgsm"].attack, 6_000, 1)).state_dict()


@pytest.fixture
def robust(robust_state: dict[str, Tensor]) -> nn.Module:
    """A fresh copy of the slightly robust net, in eval mode."""
    model = SmallCNN()
    model.load_state_dict(robust_state)
    return model.eval()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
