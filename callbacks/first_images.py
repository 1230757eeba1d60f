"""What the callbacks that draw the first test images share: choosing them, writing the figure, logging to W&B."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from robustlit.checks import check_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FirstImages(pl.Callback, ABC):
    """Draw the first images of the test split, which are not chosen by success.

    Args:
        count: Number of images, at least 1.
        seed: Seed of the attack's random draws.
        folder: Where the figure is written; None writes nothing.

    Attributes:
        write_error: The error that kept the figure from being written, if any.
    """

    subject: str  # of the figure, for warnings

    def __init__(self, count: int, seed: int, folder: str | Path | None) -> None:
        check_count(count, "count")
        self.count, self.seed = count, seed
        self.folder = None if folder is None else Path(folder)
        self.write_error: OSError | None = None

    @abstractmethod
    def draw(self, net: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Figure:
        """Return the figure of images (B, C, H, W), their classes (B,) and example numbers (B,)."""

    @abstractmethod
    def write(self, figure: Figure, folder: Path) -> None:
        """Write the figure into a folder."""

    @abstractmethod
    def logged(self, figure: Figure) -> Iterator[dict[str, Any]]:
        """Yield what is logged to W&B, each dict by a call of its own."""

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Sequence[Tensor], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Draw the first batch, on the main process."""
        if batch_idx or not trainer.is_global_zero:
            return
        x, y = batch[0][: self.count], batch[1][: self.count]
        index = batch[2][: self.count] if len(batch) > 2 else torch.arange(len(y), device=y.device)
        figure = self.draw(pl_module.net, x, y, index)  # type: ignore[arg-type]
        if self.folder is not None:
            try:
                self.write(figure, self.folder)
            except OSError as error:
                self.write_error = error
                rank_zero_warn(f"could not write the {self.subject}: {error}")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                try:
                    for values in self.logged(figure):
                        logger.experiment.log(values)
                except Exception as error:  # wandb raises many kinds, none of which may end an evaluation
                    rank_zero_warn(f"W&B did not take the {self.subject}: {type(error).__name__}: {error}")
