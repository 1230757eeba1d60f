"""A moving average of the weights, which is what is validated, saved and attacked."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.trainer.states import TrainerFn


class AveragedWeights(EMAWeightAveraging):
    """Lightning's `EMAWeightAveraging`, where a checkpoint that is tested after the training is the average too.

    Lightning's own restores in `Trainer.test(ckpt_path=)`, within the process that trained, the weights to go on from.
    BatchNorm's averages are averaged with the weights.

    Args:
        decay: Share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average and the weights to go on from, for a training."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
