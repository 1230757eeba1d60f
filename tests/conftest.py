"""Shared fixtures: real digits, a net trained on them, W&B in a temporary folder.

The tests must pass on any arithmetic. Two environment variables change it: ROBUSTLIT_TEST_THREADS sets torch's threads
(default 1), ROBUSTLIT_TEST_PRECISION replaces what `trainer.precision=auto` selects (32-true, bf16-mixed).
ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA choose the CPU's instruction set.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.cli import main
from robustlit.data import load_mnist
from robustlit.models import SmallCNN
from robustlit.results import Evaluation

# The tensors of the tests are small, and several test processes share the cores.
torch.set_num_threads(int(os.environ.get("ROBUSTLIT_TEST_THREADS", "1")))
PRECISION = os.environ.get("ROBUSTLIT_TEST_PRECISION")

# Settings of the user, a launcher or the machine must not reach the tests, nor the processes that they start.
_PREFIXES = ("WANDB_", "ROBUSTLIT_", "HYDRA_", "SLURM_", "PL_", "OMPI_COMM_", "PMI_")
_LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TERMINALS = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "MPLBACKEND")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")  # which Python, unlike Go, asks for 127.0.0.1 too
for _name in list(os.environ):
    if _name.startswith(_PREFIXES) or _name.upper() in (*_LAUNCHERS, *_TERMINALS, *_PROXIES, "NETRC"):
        del os.environ[_name]
os.environ["TERM"] = "xterm"  # a dumb terminal gets no progress bar, even when it is forced


# Of these tests one variant in so many runs by default, and the others are slow: together they would take minutes.
ONE_VARIANT_IN = {
    "test_a_hostile_recipe_is_one_line_and_does_nothing": 3,
    "test_a_linear_model_of_two_classes": 2,
    "test_a_seed_repeats_the_attack_and_no_seed_draws_afresh": 2,
    "test_a_stochastic_model_is_judged_by_votes": 2,
    "test_alone_in_part_and_in_another_order": 2,
    "test_bad_input_is_one_clear_line_and_leaves_nothing": 2,
    "test_every_command_composes": 4,
    "test_every_budget_and_step_of_a_recipe_is_in_proportion_to_eps": 3,
    "test_fab_breaks_within_the_budget_alone_whatever_class_comes_first": 2,
    "test_logits_that_are_not_finite_stop_one_example_alone": 3,
    "test_only_differences_of_logits_count": 3,
    "test_recipes_that_come_with_robustlit_pass": 4,
    "test_the_surrounding_mode_changes_nothing": 3,
}


def pytest_configure() -> None:
    """Let the signals arrive that a parent such as nohup has switched off."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Nets that a file makes while it is imported, such as parameters of its tests, are the same in every run."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of a trained net `trained`: CI runs them again on other instruction sets; thin out variants."""
    seen: dict[str, int] = {}
    for item in items:
        function = item.nodeid.partition("[")[0]
        seen[function] = seen.get(function, 0) + 1
        if (seen[function] - 1) % ONE_VARIANT_IN.get(function.rpartition("::")[2], 1):
            item.add_marker("slow")
        trains = item.path.parent.name == "training"
        if trains or "trained_state" in getattr(item, "fixturenames", ()):
            item.add_marker("trained")


@pytest.fixture(autouse=True)
def _forced_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    if PRECISION:
        monkeypatch.setattr("robustlit.experiment.trainer_settings.auto_precision", lambda accelerator: PRECISION)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    """A fresh copy of the first 200 test digits: float32 (200, 1, 28, 28) in [0, 1], and their classes."""
    _, _, images, labels = load_mnist()
    return images[:200].float() / 255, labels[:200].clone()


@pytest.fixture(scope="session")
def train_on_digits() -> Callable[..., dict[str, Tensor]]:
    """Train a SmallCNN for a few seconds on the training digits `first` to `last` and return its weights.

    In float64, which gives the same net on every CPU: in float32 the rounding of other instructions grows into weights
    that differ by 1 %.
    """

    def train(first: int, last: int, *, seed: int, lr: float, **sizes: Any) -> dict[str, Tensor]:
        images, labels, _, _ = load_mnist()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = SmallCNN(**sizes).double()
            optimizer = torch.optim.Adam(net.parameters(), lr=lr)
            for start in range(first, last, 100):
                x, y = images[start : start + 100].double() / 255, labels[start : start + 100]
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
        return net.float().state_dict()

    return train


@pytest.fixture(scope="session")
def trained_state(train_on_digits: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of a SmallCNN with about 95 % clean accuracy, not robust."""
    return train_on_digits(0, 12_000, seed=1, lr=3e-3)


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
    """Run a command in this process, in a folder of its own, and return the exit code."""
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


class LinearNet(nn.Module):
    """Two classes, logits w (x - 1/2) and its negative, in float64: broken at L-inf distance |w (x - 1/2)| / |w|_1."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        score = (x - 0.5).flatten(1) @ self.w
        return torch.stack([score, -score], 1)


class Counting(nn.Module):
    """Count the examples that pass through a network, forwards and backwards."""

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
    """A defense that rounds pixels to black or white; its attack view lets gradients through."""

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
    """A linear net, images (40, 1, 4, 4) away from the faces of the box, their classes and their L-inf distances."""
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
    """Make an Evaluation of rows (index, attack, eps, linf or None where robust); other columns can be given."""

    def make(
        rows: list[tuple[int, str, float, float | None]], meta: dict[str, Any] | None = None, **given: Any
    ) -> Evaluation:
        filled = []
        for index, attack, eps, reach in rows:
            at = eps if reach is None else reach
            filled.append(
                {
                    "index": index, "label": 1, "clean": reach != 0, "attack": attack, "knowledge": "adaptive",
                    "norm": "linf", "eps": eps, "success": reach is not None, "prediction": 1 if reach is None else 2,
                    "l0": 10.0 * at, "l1": 100.0 * at, "l2": 20.0 * at, "linf": at, "forwards": 3, "backwards": 2,
                    **given,
                }
            )  # fmt: skip
        columns: dict[str, Any] = {name: pd.DataFrame(filled)[name].to_numpy() for name in filled[0]}
        return Evaluation.from_columns(columns, meta or {})

    return make
