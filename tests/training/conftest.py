"""A Trainer that is quiet and quick, and a training that is interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Makes a Trainer on the CPU for two epochs, without checkpoints, loggers or bars."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    off = {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    return lambda **changes: pl.Trainer(**{"max_epochs": 2, **quiet, **off, **changes})


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("the victim's gradient was asked for")


class _AnswersOnly(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        assert not self.training
        return _NoBackward.apply(self.net(x))


@pytest.fixture
def answers_only() -> Callable[[nn.Module], nn.Module]:
    """Wraps a net into a victim that counts the images it is shown (`seen`) and raises when it is differentiated."""
    return _AnswersOnly


class _StopAfter(pl.Callback):
    def __init__(self, batches: int, path: Path) -> None:
        self.left, self.path = batches, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(trainer: Callable[..., pl.Trainer], tmp_path: Path) -> Callable[..., Path]:
    """Fits a module for some batches, saves a checkpoint, interrupts the training, and returns the checkpoint."""

    def fit(module: pl.LightningModule, datamodule: pl.LightningDataModule, batches: int) -> Path:
        path, handler = tmp_path / "interrupted.ckpt", signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit):
            trainer(callbacks=[_StopAfter(batches, path)]).fit(module, datamodule=datamodule)
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored on its way out
        return path

    return fit
