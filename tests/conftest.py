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

# What the user, a launcher or the machine has set is not what is tested; the processes that tests start inherit this.
_PREFIXES = ("WANDB_", "ROBUSTLIT_", "HYDRA_", "SLURM_", "PL_", "OMPI_", "PMI_")
_LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TERMINALS = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "MPLBACKEND")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")  # which Python, unlike Go, asks for 127.0.0.1 too
for _name in list(os.environ):
    if _name.startswith(_PREFIXES) or _name.upper() in (*_LAUNCHERS, *_TERMINALS, *_PROXIES, "NETRC"):
        del os.environ[_name]
os.environ["TERM"] = "xterm"  # on a dumb one no bar is drawn, be it forced


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")


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
    """Weights of a SmallCNN trained for a few seconds on real digits: about 95 % right, not robust.

    In float64, for then it is the same net on every CPU: in float32 the last bits of other instructions grow into
    weights that differ by 1 %.
    """
    images, labels, _, _ = load_mnist()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = SmallCNN().double()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for start in range(0, 12_000, 100):
            x, y = images[start : start + 100].double() / 255, labels[start : start + 100]
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.float().state_dict()


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
