"""ImagesByEps: a grid of what an attack makes of the first test images as its budget grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from robustlit.attacks.attack import BudgetAttack
from robustlit.figures import budgets_figure, save_figure
from robustlit.threat import check_eps


class ImagesByEps(pl.Callback):
    """Draws the first test images, not chosen by success, under one attack at growing budgets, the clean ones first.

    Args:
        attack: a budget attack; its own eps is not used.
        budgets: in pixel units.
        count: how many images.
        seed: of the attack's random draws.
        folder: where `images_by_eps.png` and `.svg` are written; None writes nothing.

    Raises:
        ValueError: no budget, one out of range, or no image asked for.
    """

    def __init__(
        self,
        attack: BudgetAttack,
        budgets: Sequence[float] = (0.1, 0.2, 0.3, 0.4),
        *,
        count: int = 5,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if not budgets:
            raise ValueError("budgets must name at least one eps, got none")
        self.budgets = sorted({check_eps(float(eps), attack.norm, name="budgets") for eps in budgets})
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
        with torch.no_grad():
            images, predictions = [x.cpu().numpy()], [net(x).argmax(1).tolist()]
        for eps in self.budgets:
            result = self.attack.run(net, x, y, index=index, seed=self.seed, eps=eps)
            images.append(result.x_adv.cpu().numpy())
            predictions.append(result.prediction.tolist())
        figure = budgets_figure(
            np.stack(images), [0.0, *self.budgets], y.tolist(), np.array(predictions),
            _title(self.attack, len(y)),
            norm=self.attack.norm,
        )  # fmt: skip
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_figure(figure, self.folder / "images_by_eps")
            except OSError as error:
                rank_zero_warn(f"could not write the images by eps to {self.folder}: {error}")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                try:
                    import wandb

                    logger.experiment.log({"images/by_eps": wandb.Image(figure)})
                except Exception as error:  # wandb raises many kinds, none worth losing an evaluation for
                    rank_zero_warn(f"W&B did not take the images by eps: {type(error).__name__}: {error}")


def _title(attack: BudgetAttack, count: int) -> str:
    """The attack without the eps that is not used, and the norm, which stands below."""
    kept = {f.name: getattr(attack, f.name) for f in fields(attack) if f.name not in ("eps", "norm")}
    settings = ", ".join(f"{name}={value}" for name, value in kept.items() if isinstance(value, int | float | str))
    return f"{attack.name}{f' ({settings})' if settings else ''} at growing eps, the first {count} test images"
