"""Draw clean images, what an attack makes of them, and the difference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, BudgetAttack
from robustlit.figures import images_figure, write_figure
from robustlit.tracking.metrics import IMAGES, IMAGES_TABLE

from .example_images import ExampleImages
from .quoted import Shown, clean_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AdversarialImages(ExampleImages):
    """Draw test images that an attack broke: clean, adversarial, difference magnified, true → predicted class.

    Args:
        attack: The attack to show; None takes the quoted one of the `AttackSweep` before this callback.
        count, seed, norm, eps: See `ExampleImages`.
        folder: Where `adversarial_images.png` is written; None writes nothing.
    """

    subject = "image grid"

    def __init__(
        self, attack: Attack | None = None, *, count: int = 10, seed: int = 0, folder: str | Path | None = None,
        norm: str | None = None, eps: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(attack, count, seed, folder, norm, eps)
        self._rows: list[tuple[Any, ...]] = []  # of the W&B table

    def draw(self, net: nn.Module, x: Tensor, y: Tensor, shown: Shown) -> Figure:
        """Attack the images and return the figure."""
        given: dict[str, Any] = {"eps": shown.eps} if isinstance(shown.attack, BudgetAttack) else {}
        index = torch.tensor(shown.index, device=x.device)
        result = shown.attack.run(net, x, y, index=index, seed=shown.seed, **given)
        labels, before, after = y.tolist(), clean_predictions(net, x).tolist(), result.prediction.tolist()
        largest = float((result.x_adv - x).abs().max())
        magnify = float(max(1, int(1 / largest + 0.01))) if largest else 1.0
        named = [[self.name_of(label) for label in each] for each in (labels, before, after)]
        self._rows = list(zip(shown.index, named[0], x, named[1], result.x_adv, named[2], strict=True))
        title = f"true → predicted; {shown.title}"
        clean, adversarial = x.cpu().numpy(), result.x_adv.cpu().numpy()
        return images_figure(clean, adversarial, labels, before, after, title, magnify, names=self.class_names)

    def write(self, figure: Figure, folder: Path) -> None:
        """Write `adversarial_images.png`."""
        write_figure(figure, folder / "adversarial_images.png")

    def logged(self, figure: Figure) -> Iterator[dict[str, Any]]:
        """Yield the grid, then the table: a server that has gone refuses tables."""
        import wandb

        table = wandb.Table(columns=["index", "label", "clean", "clean_prediction", "adversarial", "prediction"])
        for number, label, clean, before, adversarial, after in self._rows:
            pictures = [
                wandb.Image(_picture(image), caption=f"{label} → {found}")
                for image, found in ((clean, before), (adversarial, after))
            ]
            table.add_data(number, label, pictures[0], before, pictures[1], after)
        yield {IMAGES: wandb.Image(figure)}
        yield {IMAGES_TABLE: table}


def _picture(image: Tensor) -> Any:
    """Return (C, H, W) in [0, 1] as uint8 (H, W) or (H, W, C)."""
    pixels = image.mul(255).round().to(torch.uint8).cpu().movedim(0, -1).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
