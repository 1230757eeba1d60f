"""Draw clean images, what an attack makes of them, and the difference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustlit.attacks import Attack
from robustlit.classifier import predicted
from robustlit.figures import images_figure, write_figure
from robustlit.tracking.metrics import IMAGES, IMAGES_TABLE

from .first_images import FirstImages

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AdversarialImages(FirstImages):
    """Draw the first test images under an attack: clean, adversarial, difference magnified, true → predicted class.

    Args:
        attack: The attack to show.
        count, seed: See `FirstImages`.
        folder: Where `adversarial_images.png` is written; None writes nothing.
    """

    subject = "image grid"

    def __init__(self, attack: Attack, *, count: int = 10, seed: int = 0, folder: str | Path | None = None) -> None:
        super().__init__(count, seed, folder)
        self.attack = attack
        self._rows: list[tuple[Any, ...]] = []  # of the W&B table

    def draw(self, net: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Figure:
        """Attack the images and return the figure."""
        result = self.attack.run(net, x, y, index=index, seed=self.seed)
        with torch.no_grad():
            before = predicted(net(x)).tolist()
        labels, after = y.tolist(), result.prediction.tolist()
        largest = float((result.x_adv - x).abs().max())
        magnify = float(max(1, int(1 / largest + 0.01))) if largest else 1.0
        self._rows = list(zip(index.tolist(), labels, x, before, result.x_adv, after, strict=True))
        title = f"true → predicted; {self.attack}"
        return images_figure(x.cpu().numpy(), result.x_adv.cpu().numpy(), labels, before, after, title, magnify)

    def write(self, figure: Figure, folder: Path) -> None:
        """Write `adversarial_images.png`."""
        write_figure(figure, folder / "adversarial_images.png")

    def logged(self, figure: Figure) -> Iterator[dict[str, Any]]:
        """Yield the grid, then the table: a server that has gone refuses tables."""
        import wandb

        table = wandb.Table(columns=["index", "label", "clean", "clean_prediction", "adversarial", "prediction"])
        for row in self._rows:
            table.add_data(*(wandb.Image(_picture(v)) if isinstance(v, Tensor) else v for v in row))
        yield {IMAGES: wandb.Image(figure)}
        yield {IMAGES_TABLE: table}


def _picture(image: Tensor) -> Any:
    """Return (C, H, W) in [0, 1] as uint8 (H, W) or (H, W, C)."""
    pixels = image.mul(255).round().to(torch.uint8).cpu().movedim(0, -1).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
