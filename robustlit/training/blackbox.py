"""Distil a substitute for the black-box attacker from the attacked net's answers to training images."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from robustlit.models import SmallCNN
from robustlit.training.substitute import Distilled, distil


def distil_small_cnn(trainer: pl.Trainer, module: Any, images: int, seed: int) -> Distilled | None:
    """Distil a `SmallCNN` from a module's net, without a draw from the global generators.

    Args:
        trainer: The Trainer that tests the module.
        module: The module with the attacked `net`.
        images: How many training images to ask the net about.
        seed: Seed of the new net's weights and of the order of the images.

    Returns:
        The substitute; None with several processes, or without a DataModule of `robustlit.data`.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if trainer.world_size > 1 or not hasattr(data, "tensors"):
        return None
    x, _, _ = data.tensors("train", images)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        substitute = SmallCNN(data.num_classes, data.in_chans, data.image_size)
        return distil(module.net, substitute, x.to(module.device), seed=seed)
