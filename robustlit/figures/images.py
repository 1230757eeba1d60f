"""Adversarial images beside the clean ones, and how they change as the budget grows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustlit.figures.panel import NORMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRONG = "#C00000"


def images_figure(
    clean: np.ndarray, adversarial: np.ndarray, labels: Sequence[int], before: Sequence[int], after: Sequence[int],
    title: str, magnify: float = 1.0,
) -> Figure:  # fmt: skip
    """Draw a grid of clean images, adversarial images and their magnified difference, a column an example.

    Args:
        clean, adversarial: Images (N, C, H, W) in [0, 1].
        labels: N true classes.
        before, after: N predicted classes, without and with the attack, -1 for none; wrong ones are red.
        magnify: Factor of the difference, which is drawn around mid-grey.
    """
    columns = len(labels)
    figure, axes = _grid(title, max(4.0, 1.15 * columns), 4.3, 3, columns)
    difference = np.clip(0.5 + magnify * (adversarial - clean) / 2, 0, 1)
    names = ("clean", "adversarial", f"difference ×{magnify:g}")
    for row, (name, images) in enumerate(zip(names, (clean, adversarial, difference), strict=True)):
        axes[row, 0].set_ylabel(name, fontsize=9)
        for axis, image in zip(axes[row], images, strict=True):
            _show(axis, image)
    for row, predictions in enumerate((before, after)):
        for axis, label, found in zip(axes[row], labels, predictions, strict=True):
            axis.set_title(f"{label} → {_class(found)}", fontsize=9, color="black" if found == label else _WRONG, pad=3)
    return figure


def budgets_figure(
    images: np.ndarray, budgets: Sequence[float], labels: Sequence[int], predictions: np.ndarray, title: str,
    *, norm: str = "linf",
) -> Figure:  # fmt: skip
    """Draw a grid of adversarial images at growing eps: a row an example, a column a budget.

    Args:
        images: (E, N, C, H, W) in [0, 1], N examples at E budgets.
        budgets: E budgets in pixel units, ascending; 0 is the clean image.
        labels: N true classes.
        predictions: (E, N) predicted classes, -1 for none; wrong ones are red, with a red frame.
        norm: "linf" or "l2", the norm of the budgets.

    Raises:
        ValueError: Sizes do not match, or budgets are not ascending.
    """
    count, examples = len(budgets), len(labels)
    if images.ndim != 5 or images.shape[:2] != (count, examples) or np.shape(predictions) != (count, examples):
        raise ValueError(
            f"images must be (E, N, C, H, W) and predictions (E, N) with E = {count} budgets and N = {examples} "
            f"labels, got {images.shape} and {np.shape(predictions)}"
        )
    if count == 0 or examples == 0 or list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets must be ascending, without repeats, with at least one image, got {list(budgets)}")
    figure, axes = _grid(title, max(4.0, 0.9 * count + 0.5), 1.0 + 0.95 * examples, examples, count)
    for (row, column), axis in np.ndenumerate(axes):
        _show(axis, images[column, row])
        found = int(predictions[column][row])
        fill, colour, frame = (_WRONG, "white", _WRONG) if found != labels[row] else ("white", "black", "#999999")
        axis.text(
            0.97, 0.97, _class(found), transform=axis.transAxes, ha="right", va="top", fontsize=8, color=colour,
            bbox={"facecolor": fill, "pad": 1.2, "linewidth": 0},
        )  # fmt: skip
        axis.spines[:].set(color=frame, linewidth=1.6 if found != labels[row] else 0.6)
    for axis, eps in zip(axes[0], budgets, strict=True):
        axis.set_title("clean" if eps == 0 else f"{eps:.3g}", fontsize=9, pad=3)
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(f"true {label}", fontsize=9)
    words = f"budget eps, {NORMS.get(norm, norm)} (pixel units); in the corner the predicted class, red where wrong"
    figure.supxlabel(words, fontsize=8)
    return figure


def _class(found: int) -> str:
    return str(found) if found >= 0 else "none"  # -1: the logits name no class


def _grid(title: str, width: float, height: float, rows: int, columns: int) -> tuple[Figure, Any]:
    """Make a figure of `width` x `height` inches, higher for a long title; return it and its axes (rows, columns)."""
    from matplotlib.figure import Figure

    title = textwrap.fill(title, int(11 * width))  # letters an inch at this size
    figure = Figure(figsize=(width, height + 0.16 * title.count("\n")), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: Axes, image: np.ndarray) -> None:
    """Draw an image (C, H, W) in [0, 1]."""
    picture = np.moveaxis(image, 0, -1)
    axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
