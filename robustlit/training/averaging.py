"""A moving average of the weights, which is what is validated, saved and attacked."""

from __future__ import annotations

from itertools import chain, compress
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights, as Lightning's `EMAWeightAveraging`, but on the device of the net.

    Lightning makes the average before the net is on its GPU: the average stays on the CPU, and each step copies every
    tensor of the net there and averages them one by one. Here all are averaged at once, without waiting for the GPU. A
    checkpoint that is tested after the training (`Trainer.test(ckpt_path=)`) is the average too, where Lightning
    restores the weights to go on from.

    BatchNorm's running statistics are averaged with the weights. Buffers of integers, and those that hold infinity as a
    mask does, are copied.

    Args:
        decay: Share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=True)
        self._update = get_ema_multi_avg_fn(decay)
        self._averaged: list[bool] = []  # of each weight and buffer: whether it is averaged; the others are copied

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average, on the device that the net is going to be on."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()  # read in every step
            self._averaged = [part.is_floating_point() and bool(part.isfinite().all()) for part in _tensors(pl_module)]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimizer step."""
        if trainer.global_step <= self._latest_update_step:
            return  # gradients accumulate
        self._latest_update_step = trainer.global_step
        assert self._average_model is not None
        averages, weights = _tensors(self._average_model.module), _tensors(pl_module)
        weights = [weight.to(average.dtype) for average, weight in zip(averages, weights, strict=True)]
        is_first = not self._average_model.n_averaged  # the average begins with the weights after the first step
        averaged = [not is_first and each for each in self._averaged]
        if any(averaged):
            chosen = [[*compress(tensors, averaged)] for tensors in (averages, weights)]
            self._update(*chosen, self._average_model.n_averaged)
        for average, weight, done in zip(averages, weights, averaged, strict=True):
            if not done:
                average.copy_(weight)
        self._average_model.n_averaged += 1

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average and the weights to go on from, for a training."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return the weights and buffers of a module, detached."""
    return [tensor.detach() for tensor in chain(module.parameters(), module.buffers())]
