"""What the callbacks that draw test images under attack share: choosing them, writing the figure, logging to W&B."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from robustlit.attacks import Attack
from robustlit.checks import check_count
from robustlit.data.base import ClassificationData
from robustlit.evaluation.batches import class_names_of

from .attack_sweep import sweep_before
from .quoted import Shown, quoted, tried
from .save_on_interrupt import SaveOnInterrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ExampleImages(pl.Callback, ABC):
    """Draw test images that an attack broke, from as many classes as there are; where it broke none, its attempts.

    Args:
        attack: The attack, tried on some images of the first batch. None takes the quoted one, the strongest at the
            budget, from the `AttackSweep` before this callback; without one nothing is drawn.
        count: Number of images, at least 1.
        seed: Seed of the random draws of `attack`; the sweep has its own.
        folder: Where the figure is written; None writes nothing.
        norm, eps: The quoted budget; by default, and where no attack ran at it, the first budget attack's own.

    Attributes:
        write_error: The error that kept the figure from being written, if any.
    """

    after_sweep = True  # its place among the callbacks of a recipe
    subject: ClassVar[str]  # of the figure, for warnings
    with_budget: ClassVar[bool] = False  # draw budget attacks alone

    def __init__(
        self, attack: Attack | None, count: int, seed: int, folder: str | Path | None, norm: str | None,
        eps: float | None,
    ) -> None:  # fmt: skip
        check_count(count, "count")
        self.attack, self.count, self.seed = attack, count, seed
        self.folder = Path(folder) if folder is not None else None
        self.norm, self.eps = norm, eps
        self.write_error: OSError | None = None
        self.class_names: list[str] = []

    @abstractmethod
    def draw(self, net: nn.Module, x: Tensor, y: Tensor, shown: Shown) -> Figure:
        """Return the figure of the examples `shown`, with images (B, C, H, W) and classes (B,)."""

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
        """Draw an attack of the user's on the first batch, on the main process."""
        if self.attack is None or batch_idx or not trainer.is_global_zero:
            return
        x, y, net = batch[0], batch[1], pl_module.net
        index = batch[2] if len(batch) > 2 else torch.arange(len(y), device=y.device)
        shown = tried(self.attack, net, x, y, index, self.count, self.seed)  # type: ignore[arg-type]
        places = [index.tolist().index(number) for number in shown.index]
        self._finish(trainer, pl_module, x[places], y[places], shown)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the quoted attack of the sweep, on the main process."""
        sweep = None if self.attack is not None else sweep_before(self, trainer)
        if sweep is None or sweep.evaluation is None or not trainer.is_global_zero:
            return
        with SaveOnInterrupt.interruptible(trainer):
            net: Any = pl_module.net
            shown = quoted(
                sweep.evaluation, sweep.sweep, net, self.count, self.norm, self.eps, with_budget=self.with_budget
            )
            if shown is None:
                rank_zero_warn(f"there is no {self.subject}: the sweep ran no attack with a budget")
                return
            found = _examples(trainer, shown.index)
            if not found:
                rank_zero_warn(f"there is no {self.subject}: the main process has none of the examples")
                return
            x, y = (torch.stack(part).to(pl_module.device) for part in zip(*found.values(), strict=True))
            self._finish(trainer, pl_module, x, y, replace(shown, index=tuple(found)))

    def _finish(self, trainer: pl.Trainer, module: pl.LightningModule, x: Tensor, y: Tensor, shown: Shown) -> None:
        data = getattr(trainer, "datamodule", None)
        found = class_names_of(data) or class_names_of(trainer.test_dataloaders)
        self.class_names = found.get("class_names", [])
        figure = self.draw(module.net, x, y, shown)  # type: ignore[arg-type]
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

    def name_of(self, label: int) -> str:
        """Return the name of a class, its number where it has none, "none" for -1: the logits name no class."""
        if label < 0:
            return "none"
        return self.class_names[label] if label < len(self.class_names) else str(label)


def _examples(trainer: pl.Trainer, numbers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return image and class of those of the test examples that this process can read, by number, in that order."""
    data: Any = getattr(trainer, "datamodule", None)
    if isinstance(data, ClassificationData):
        x, y, _ = data.examples("test", torch.tensor(numbers))
        return dict(zip(numbers, zip(x, y, strict=True), strict=True))
    found, seen = {}, 0
    loader: Any = trainer.test_dataloaders
    for batch in loader:
        index = batch[2].tolist() if len(batch) > 2 else range(seen, seen + len(batch[1]))
        seen += len(batch[1])
        found.update({number: (batch[0][k], batch[1][k]) for k, number in enumerate(index) if number in numbers})
        if len(found) == len(numbers):
            break
    return {number: found[number] for number in numbers if number in found}
