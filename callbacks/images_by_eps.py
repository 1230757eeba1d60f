"""Draw what an attack makes of images as its budget grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks.attack import BudgetAttack
from robustlit.figures import budgets_figure, save_figure
from robustlit.threat import check_eps
from robustlit.tracking.metrics import IMAGES_BY_EPS

from .example_images import ExampleImages
from .quoted import Shown, clean_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImagesByEps(ExampleImages):
    """Draw test images that an attack broke at growing budgets, the clean ones first.

    Args:
        attack: A budget attack, which chooses examples at its own eps; None takes the quoted one of the `AttackSweep`
            before this callback.
        budgets: At least one, in pixel units; None takes a quarter, a half, once and twice the eps that chooses the
            examples.
        count, seed, norm, eps: See `ExampleImages`.
        folder: Where `images_by_eps.png` and `.svg` are written; None writes nothing.
    """

    subject = "images by eps"
    with_budget = True

    def __init__(
        self, attack: BudgetAttack | None = None, budgets: Sequence[float] | None = None, *, count: int = 5,
        seed: int = 0, folder: str | Path | None = None, norm: str | None = None, eps: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(attack, count, seed, folder, norm, eps)
        if budgets is not None and not budgets:
            raise ValueError("budgets must name at least one eps, got none")
        norm = "l2" if attack is None else attack.norm  # of the quoted attack it is not known yet: no upper bound
        self.budgets = None if budgets is None else sorted({check_eps(float(e), norm, name="budgets") for e in budgets})

    def draw(self, net: nn.Module, x: Tensor, y: Tensor, shown: Shown) -> Figure:
        """Attack the images at every budget and return the figure."""
        attack: Any = shown.attack
        assert shown.eps is not None
        largest, index = 1.0 if attack.norm == "linf" else np.inf, torch.tensor(shown.index, device=x.device)
        budgets = self.budgets or sorted({min(factor * shown.eps, largest) for factor in (0.25, 0.5, 1, 2)})
        images, predictions = [x.cpu().numpy()], [clean_predictions(net, x).tolist()]
        for eps in budgets:
            result = attack.run(net, x, y, index=index, seed=shown.seed, eps=eps)
            images.append(result.x_adv.cpu().numpy())
            predictions.append(result.prediction.tolist())
        return budgets_figure(
            np.stack(images), [0.0, *budgets], y.tolist(), np.array(predictions), shown.title, norm=attack.norm,
            names=self.class_names,
        )  # fmt: skip

    def write(self, figure: Figure, folder: Path) -> None:
        """Write `images_by_eps.png` and `.svg`."""
        save_figure(figure, folder / "images_by_eps")

    def logged(self, figure: Figure) -> Iterator[dict[str, Any]]:
        """Yield the figure."""
        import wandb

        yield {IMAGES_BY_EPS: wandb.Image(figure)}
