"""Distil a substitute for the black-box attacker from the attacked net's answers to training images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from robustlit.files import write_tensors
from robustlit.models import SmallCNN
from robustlit.training.substitute import Distilled, distil


def distil_small_cnn(
    trainer: pl.Trainer, module: Any, images: int, seed: int, kept: Path | None = None
) -> Distilled | None:
    """Distil a `SmallCNN` from a module's net, without a draw from the global generators.

    Args:
        trainer: The Trainer that tests the module.
        module: The module with the attacked `net`.
        images: How many training images to ask the net about.
        seed: Seed of the new net's weights and of the order of the images.
        kept: A file that an earlier call wrote, from which the same substitute is read; without one it is written.

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
        if kept is not None and (found := _read(kept, substitute.to(module.device))) is not None:
            return found
        made = distil(module.net, substitute, x.to(module.device), seed=seed)
    if kept is not None:
        _write(kept, made)
    return made


def _read(file: Path, net: SmallCNN) -> Distilled | None:
    """Return the substitute in a file, as `net` with its weights; None where there is none or it is damaged."""
    if not file.is_file():
        return None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
        net.load_state_dict(found["state_dict"])
        return Distilled(net.eval(), float(found["agreement"]), int(found["queries"]))
    except Exception as error:  # readers of damaged files raise many kinds
        warnings.warn(f"{file} is damaged ({type(error).__name__}): another substitute is distilled", stacklevel=3)
        return None


def _write(file: Path, made: Distilled) -> None:
    held = {"state_dict": made.net.state_dict(), "agreement": made.agreement, "queries": made.queries}
    try:
        write_tensors(file, held)
    except OSError as error:
        warnings.warn(f"could not keep the substitute in {file}: {error}", stacklevel=3)
