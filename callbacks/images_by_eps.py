"""Draw what an attack makes of images as its budget grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks.attack import BudgetAttack
from robustlit.classifier import predicted
from robustlit.figures import budgets_figure, save_figure
from robustlit.threat import check_eps
from robustlit.tracking.metrics import IMAGES_BY_EPS

from .first_images import FirstImages

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImagesByEps(FirstImages):
    """Draw the first test images under one attack at growing budgets, the clean ones first.

    Args:
        attack: A budget attack; its own eps is not used.
        budgets: At least one, in pixel units.
        count, seed: See `FirstImages`.
        folder: Where `images_by_eps.png` and `.svg` are written; None writes nothing.
    """

    subject = "images by eps"

    def __init__(
        self, attack: BudgetAttack, budgets: Sequence[float] = (0.1, 0.2, 0.3, 0.4), *, count: int = 5, seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(count, seed, folder)
        if not budgets:
            raise ValueError("budgets must name at least one eps, got none")
        self.attack = attack
        self.budgets = sorted({check_eps(float(eps), attack.norm, name="budgets") for eps in budgets})

    def draw(self, net: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Figure:
        """Attack the images at every budget and return the figure."""
        with torch.no_grad():
            images, predictions = [x.cpu().numpy()], [predicted(net(x)).tolist()]
        for eps in self.budgets:
            result = self.attack.run(net, x, y, index=index, seed=self.seed, eps=eps)
            images.append(result.x_adv.cpu().numpy())
            predictions.append(result.prediction.tolist())
        budgets, title, norm = [0.0, *self.budgets], _title(self.attack, len(y)), self.attack.norm
        return budgets_figure(np.stack(images), budgets, y.tolist(), np.array(predictions), title, norm=norm)

    def write(self, figure: Figure, folder: Path) -> None:
        """Write `images_by_eps.png` and `.svg`."""
        save_figure(figure, folder / "images_by_eps")

    def logged(self, figure: Figure) -> Iterator[dict[str, Any]]:
        """Yield the figure."""
        import wandb

        yield {IMAGES_BY_EPS: wandb.Image(figure)}


def _title(attack: BudgetAttack, count: int) -> str:
    """Describe the attack without the eps that is not used and without the norm, which the axis names."""
    kept = {f.name: getattr(attack, f.name) for f in fields(attack) if f.name not in ("eps", "norm")}
    settings = ", ".join(f"{name}={value}" for name, value in kept.items() if isinstance(value, int | float | str))
    return f"{attack.name}{f' ({settings})' if settings else ''} at growing eps, the first {count} test images"
