"""SaveOnInterrupt: Ctrl-C, the checkpoint it leaves, and what comes of going on from it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from robustlit.callbacks import SaveOnInterrupt
from robustlit.data import MNIST
from robustlit.models import SmallCNN
from robustlit.objectives import Standard
from robustlit.training import RobustClassifier

MakeTrainer = Callable[..., pl.Trainer]


class CtrlC(pl.Callback):
    """Sends the process SIGINT the n-th time that a hook is called."""

    def __init__(self, hook: str, time: int, presses: int = 1) -> None:
        self.left, self.presses = time, presses
        setattr(self, hook, self._called)

    def _called(self, *arguments: Any, **rest: Any) -> None:
        self.left -= 1
        if self.left == 0:
            for _ in range(self.presses):
                signal.raise_signal(signal.SIGINT)  # to this thread: two to the process could merge into one


@pytest.fixture(autouse=True)
def _signal_kept() -> Any:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever another test or the test runner has set
    yield
    signal.signal(signal.SIGINT, before)


def fit(trainer: MakeTrainer, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> tuple[Any, pl.Trainer]:
    torch.manual_seed(0)
    module = RobustClassifier(SmallCNN(), Standard(), partial(torch.optim.Adam, lr=1e-3), num_classes=10)
    runner = trainer(*callbacks, max_epochs=2)
    data = MNIST(train_size=300, val_size=100, batch_size=100, eval_batch_size=50)
    try:
        runner.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except (SystemExit, KeyboardInterrupt):
        return None, runner
    return module.net.state_dict(), runner


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, torch.Tensor]:
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return fit(lambda **more: pl.Trainer(**quiet, **more, num_sanity_val_steps=0))[0]


@pytest.mark.parametrize(
    ("hook", "time", "stops_at"),
    [
        ("on_train_batch_start", 2, 2),
        ("on_train_batch_start", 3, 3),  # the last step of an epoch
        ("on_validation_batch_start", 1, 3),  # the validation is finished
        ("on_validation_batch_start", 4, 6),  # the last validation of all
        ("on_train_epoch_start", 2, 4),
    ],
)
def test_ctrl_c_leaves_a_checkpoint_from_which_the_training_ends_as_if_uninterrupted(
    trainer: MakeTrainer, tmp_path: Path, uninterrupted: Any, hook: str, time: int, stops_at: int
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    handler = signal.getsignal(signal.SIGINT)
    weights, runner = fit(trainer, CtrlC(hook, time), SaveOnInterrupt(path))
    assert weights is None  # it left by SystemExit or KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) == handler
    assert runner.global_step == torch.load(path, weights_only=True)["global_step"] == stops_at
    resumed, runner = fit(trainer, ckpt_path=path)
    assert runner.global_step == 6
    assert all(torch.equal(value, uninterrupted[name]) for name, value in resumed.items())


def test_a_second_ctrl_c_stops_at_once(trainer: MakeTrainer, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    path = tmp_path / "last.ckpt"
    weights, runner = fit(trainer, CtrlC("on_train_batch_start", 2, presses=2), SaveOnInterrupt(path))
    assert weights is None
    assert runner.global_step == 1  # the step that it came in is not taken
    assert not path.exists()
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_training_without_ctrl_c_gives_the_signal_back_and_saves_nothing(
    trainer: MakeTrainer, tmp_path: Path, uninterrupted: Any
) -> None:
    own = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGINT, own)  # a handler of the user's
    callback = SaveOnInterrupt(tmp_path / "last.ckpt")
    for _ in range(2):
        weights, _ = fit(trainer, callback)
        assert all(torch.equal(value, uninterrupted[name]) for name, value in weights.items())
        assert signal.getsignal(signal.SIGINT) is own
    assert not callback.path.exists()
    fit(trainer, CtrlC("on_train_batch_start", 1), callback)
    assert signal.getsignal(signal.SIGINT) is own


def test_a_handler_that_was_set_since_is_left_alone(tmp_path: Path) -> None:
    guard = SaveOnInterrupt(tmp_path / "last.ckpt").guard
    handler = signal.getsignal(signal.SIGINT)
    guard.start(0, 1)
    assert signal.getsignal(signal.SIGINT) != handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard.end()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
