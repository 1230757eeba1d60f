"""A classifier ready for a Trainer, and a Trainer that is quiet and quick."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from robustlit.data import MNIST
from robustlit.objectives import Standard
from robustlit.training import RobustClassifier


@pytest.fixture
def module(net: nn.Module) -> RobustClassifier:
    """The trained SmallCNN as a LightningModule."""
    return RobustClassifier(net, Standard(), partial(torch.optim.Adam, lr=1e-3), num_classes=10)


@pytest.fixture
def data() -> MNIST:
    """Three test batches of 40, 40 and 10 digits; 300 to train on."""
    return MNIST(train_size=300, val_size=100, test_size=90, batch_size=50, eval_batch_size=40)


@pytest.fixture
def trainer() -> Callable[..., pl.Trainer]:
    """Make a Trainer on the CPU without checkpoints, loggers or bars, unless they are given."""

    def make(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
        bar = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks)
        quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False,
                 "enable_progress_bar": bar, "num_sanity_val_steps": 0, "max_epochs": 1}  # fmt: skip
        return pl.Trainer(**{**quiet, **settings}, callbacks=list(callbacks))

    return make


@pytest.fixture
def run_test(module: RobustClassifier, data: MNIST, trainer: Callable[..., pl.Trainer]) -> Callable[..., None]:
    """Test the module on the data with these callbacks, or on another loader."""

    def test(*callbacks: pl.Callback, loader: Any = None, **settings: Any) -> None:
        source = {"datamodule": data} if loader is None else {"dataloaders": loader}
        trainer(*callbacks, **settings).test(module, **source, verbose=False)

    return test
