"""AdversarialImages: a grid of clean images, what an attack makes of them, and the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from robustlit.attacks import Attack
from robustlit.figures import images_figure


class AdversarialImages(pl.Callback):
    """Draws the first test images under an attack: clean, adversarial, difference magnified, true → predicted class.

    The images are the first ones of the test split, not chosen by success.

    Args:
        attack: what to show.
        count: how many images.
        seed: of the attack's random draws.
        folder: where `adversarial_images.png` is written; None writes nothing.
    """

    def __init__(self, attack: Attack, *, count: int = 10, seed: int = 0, folder: str | Path | None = None) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.attack, self.count, self.seed = attack, count, seed
        self.folder = None if folder is None else Path(folder)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws from the first batch, on the main process."""
        if batch_idx or not trainer.is_global_zero:
            return
        x, y = batch[0][: self.count], batch[1][: self.count]
        index = batch[2][: self.count] if len(batch) > 2 else torch.arange(len(y), device=y.device)
        net: Any = pl_module.net
        result = self.attack.run(net, x, y, index=index, seed=self.seed)
        with torch.no_grad():
            before = net(x).argmax(1).tolist()
        after = result.prediction.tolist()
        largest = float((result.x_adv - x).abs().max())
        magnify = float(max(1, int(1 / largest + 0.01))) if largest else 1.0
        figure = images_figure(
            x.cpu().numpy(),
            result.x_adv.cpu().numpy(),
            y.tolist(),
            before,
            after,
            f"true → predicted; {self.attack}",
            magnify,
        )
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(self.folder / "adversarial_images.png")
            except OSError as error:
                rank_zero_warn(f"could not write the image grid to {self.folder}: {error}")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._log(logger, figure, x, result.x_adv, y.tolist(), before, after, index.tolist())

    @staticmethod
    def _log(
        logger: WandbLogger,
        figure: Any,
        x: Tensor,
        x_adv: Tensor,
        labels: list[int],
        before: list[int],
        after: list[int],
        index: list[int],
    ) -> None:
        import wandb

        try:
            table = wandb.Table(columns=["index", "label", "clean", "clean_prediction", "adversarial", "prediction"])
            for row in range(len(labels)):
                pictures = [wandb.Image(_picture(batch[row])) for batch in (x, x_adv)]
                table.add_data(index[row], labels[row], pictures[0], before[row], pictures[1], after[row])
            logger.experiment.log({"images/grid": wandb.Image(figure)})
            logger.experiment.log({"images/table": table})  # apart: a server that is gone refuses tables
        except Exception as error:  # wandb raises many kinds, none worth losing an evaluation for
            rank_zero_warn(f"W&B did not take the image grid: {type(error).__name__}: {error}")


def _picture(image: Tensor) -> Any:
    """(C, H, W) in [0, 1] as uint8 (H, W) or (H, W, C)."""
    pixels = image.mul(255).round().to(torch.uint8).cpu().movedim(0, -1).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
