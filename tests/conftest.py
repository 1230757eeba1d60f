"""What the tests share: real digits, a net trained on them, and W&B kept in a temporary folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.cli import main
from robustlit.data import load_mnist
from robustlit.models import SmallCNN

torch.set_num_threads(1)  # the tests' tensors are small, and several test processes may share the cores


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("ROBUSTLIT_RUN_DIR", raising=False)
    monkeypatch.delenv("ROBUSTLIT_RECIPES", raising=False)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The first 200 test digits: float32 (200, 1, 28, 28) in [0, 1], and their classes."""
    _, _, images, labels = load_mnist()
    return images[:200].float() / 255, labels[:200].clone()


@pytest.fixture(scope="session")
def trained_state() -> dict[str, Tensor]:
    """Weights of a SmallCNN trained for a few seconds on real digits: about 95 % right, not robust."""
    images, labels, _, _ = load_mnist()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = SmallCNN()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for start in range(0, 12_000, 100):
            x, y = images[start : start + 100].float() / 255, labels[start : start + 100]
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.state_dict()


@pytest.fixture
def net(trained_state: dict[str, Tensor]) -> nn.Module:
    """A fresh copy of the trained SmallCNN, in eval mode."""
    model = SmallCNN()
    model.load_state_dict(trained_state)
    return model.eval()


@pytest.fixture(autouse=True)
def _global_generator_kept() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command in this process, in a folder of its own; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        handler = signal.getsignal(signal.SIGINT)
        monkeypatch.setattr(sys, "argv", ["robustlit", *arguments])
        try:
            with pytest.raises(SystemExit) as exit_:
                main()
        finally:
            signal.signal(signal.SIGINT, handler)
            os.environ.pop("ROBUSTLIT_RUN_DIR", None)
        return int(exit_.value.code or 0)

    return call
