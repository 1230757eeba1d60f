"""Images: what an attack makes of them, and how they change as its budget grows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRONG = "#C00000"


def images_figure(
    clean: np.ndarray,
    adversarial: np.ndarray,
    labels: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    title: str,
    magnify: float = 1.0,
) -> Figure:
    """A grid: clean image, adversarial image and their difference magnified, a column an example.

    Args:
        clean, adversarial: (N, C, H, W) in [0, 1].
        labels: N true classes.
        before, after: N predicted classes, without and with the attack; wrong ones are marked red.
        title: above all.
        magnify: factor of the difference, which is drawn around mid-grey.
    """
    from matplotlib.figure import Figure

    columns = len(labels)
    width = max(4.0, 1.15 * columns)
    title = textwrap.fill(title, int(11 * width))  # letters an inch at this size
    figure = Figure(figsize=(width, 4.3 + 0.16 * title.count("\n")), dpi=150, layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    difference = np.clip(0.5 + magnify * (adversarial - clean) / 2, 0, 1)
    rows = (
        ("clean", clean, before),
        ("adversarial", adversarial, after),
        (f"difference ×{magnify:g}", difference, None),
    )
    for row, (name, images, predictions) in enumerate(rows):
        for column in range(columns):
            axis = axes[row, column]
            _show(axis, images[column])
            if column == 0:
                axis.set_ylabel(name, fontsize=9)
            if predictions is not None:
                right = predictions[column] == labels[column]
                text = f"{labels[column]} → {predictions[column]}"
                axis.set_title(text, fontsize=9, color="black" if right else _WRONG, pad=3)
    figure.suptitle(title, fontsize=10)
    return figure


def budgets_figure(
    images: np.ndarray,
    budgets: Sequence[float],
    labels: Sequence[int],
    predictions: np.ndarray,
    title: str,
    *,
    norm: str = "linf",
) -> Figure:
    """A grid of adversarial images at growing eps: a row an example, a column a budget.

    Args:
        images: (E, N, C, H, W) in [0, 1], N examples at E budgets.
        budgets: E budgets in pixel units, ascending; 0 is the clean image.
        labels: N true classes.
        predictions: (E, N) predicted classes; wrong ones are marked red, with a red frame.
        title: above all.
        norm: "linf" or "l2", which the budgets are measured in.

    Raises:
        ValueError: sizes that do not fit together, or budgets that do not grow.
    """
    from matplotlib.figure import Figure

    count, examples = len(budgets), len(labels)
    if images.ndim != 5 or images.shape[:2] != (count, examples) or np.shape(predictions) != (count, examples):
        raise ValueError(
            f"images must be (E, N, C, H, W) and predictions (E, N) with E = {count} budgets and N = {examples} "
            f"labels, got {images.shape} and {np.shape(predictions)}"
        )
    if count == 0 or examples == 0 or list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets must be ascending, without repeats, with at least one image, got {list(budgets)}")
    width = max(4.0, 0.9 * count + 0.5)
    title = textwrap.fill(title, int(11 * width))
    height = 1.0 + 0.95 * examples + 0.16 * title.count("\n")
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(examples, count, squeeze=False)
    for row in range(examples):
        for column in range(count):
            axis = axes[row, column]
            _show(axis, images[column, row])
            found = int(predictions[column][row])
            wrong = found != labels[row]
            axis.text(
                0.97, 0.97, str(found), transform=axis.transAxes, ha="right", va="top", fontsize=8,
                color="white" if wrong else "black",
                bbox={"facecolor": _WRONG if wrong else "white", "pad": 1.2, "linewidth": 0},
            )  # fmt: skip
            axis.spines[:].set(color=_WRONG if wrong else "#999999", linewidth=1.6 if wrong else 0.6)
            if row == 0:
                axis.set_title("clean" if budgets[column] == 0 else f"{budgets[column]:.3g}", fontsize=9, pad=3)
            if column == 0:
                axis.set_ylabel(f"true {labels[row]}", fontsize=9)
    unit = {"linf": "L∞", "l2": "L2"}.get(norm, norm)
    figure.supxlabel(
        f"budget eps, {unit} (pixel units); in the corner the predicted class, red where wrong", fontsize=8
    )
    figure.suptitle(title, fontsize=10)
    return figure


def _show(axis: Axes, image: np.ndarray) -> None:
    """Draws an image (C, H, W) in [0, 1]."""
    picture = np.moveaxis(image, 0, -1)
    axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
