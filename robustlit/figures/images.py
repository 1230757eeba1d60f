"""Adversarial images beside the clean ones, and how they change as the budget grows."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustlit.checks import budget_text
from robustlit.figures.notebook import new_figure
from robustlit.figures.panel import NORMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRONG = "#C00000"
_COLUMN_LETTERS, _CORNER_LETTERS = 13, 9  # that fit the width of an image


def images_figure(
    clean: np.ndarray, adversarial: np.ndarray, labels: Sequence[int], before: Sequence[int], after: Sequence[int],
    title: str, magnify: float = 1.0, *, names: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Draw a grid of clean images, adversarial images and their magnified difference, a column an example.

    Args:
        clean, adversarial: Images (N, C, H, W) in [0, 1].
        labels: N true classes.
        before, after: N predicted classes, without and with the attack, -1 for none; wrong ones are red.
        magnify: Factor of the difference, which is drawn around mid-grey.
        names: Names of the classes by number, shortened where they are long; without one its number is shown.
    """
    name_of = class_labels(names, _COLUMN_LETTERS)
    columns = len(labels)
    figure, axes = _grid(title, max(4.0, 1.15 * columns), 4.3, 3, columns)
    difference = np.clip(0.5 + magnify * (adversarial - clean) / 2, 0, 1)
    names = ("clean", "adversarial", f"difference ×{magnify:g}")
    for row, (name, images) in enumerate(zip(names, (clean, adversarial, difference), strict=True)):
        axes[row, 0].set_ylabel(name, fontsize=9)
        for axis, image in zip(axes[row], images, strict=True):
            show_image(axis, image)
    for row, predictions in enumerate((before, after)):
        for axis, label, found in zip(axes[row], labels, predictions, strict=True):
            words = [name_of(label), name_of(found)]
            text = f"{words[0]} →{' ' if sum(map(len, words)) <= _COLUMN_LETTERS else chr(10)}{words[1]}"
            colour = "black" if found == label else _WRONG
            axis.set_title(text, fontsize=9, color=colour, pad=3, parse_math=False)
    return figure


def budgets_figure(
    images: np.ndarray, budgets: Sequence[float], labels: Sequence[int], predictions: np.ndarray, title: str,
    *, norm: str = "linf", names: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Draw a grid of adversarial images at growing eps: a row an example, a column a budget.

    Args:
        images: (E, N, C, H, W) in [0, 1], N examples at E budgets.
        budgets: E budgets in pixel units, ascending; 0 is the clean image.
        labels: N true classes.
        predictions: (E, N) predicted classes, -1 for none; wrong ones are red, with a red frame.
        norm: "linf" or "l2", the norm of the budgets.
        names: As in `images_figure`.

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
    name_of = class_labels(names, _CORNER_LETTERS)
    figure, axes = _grid(title, max(4.0, 0.9 * count + 0.5), 1.0 + 0.95 * examples, examples, count)
    for (row, column), axis in np.ndenumerate(axes):
        show_image(axis, images[column, row])
        found = int(predictions[column][row])
        fill, colour, frame = (_WRONG, "white", _WRONG) if found != labels[row] else ("white", "black", "#999999")
        axis.text(
            0.97, 0.97, name_of(found), transform=axis.transAxes, ha="right", va="top", fontsize=8, color=colour,
            bbox={"facecolor": fill, "pad": 1.2, "linewidth": 0}, parse_math=False,
        )  # fmt: skip
        axis.spines[:].set(color=frame, linewidth=1.6 if found != labels[row] else 0.6)
    for axis, eps in zip(axes[0], budgets, strict=True):
        axis.set_title("clean" if eps == 0 else budget_text(eps), fontsize=9, pad=3)
    shown = [name_of(label) for label in labels]
    between = " " if max(map(len, shown)) < 4 else "\n"
    for axis, name in zip(axes[:, 0], shown, strict=True):
        axis.set_ylabel(f"true{between}{name}", fontsize=9, parse_math=False)
    words = f"budget eps, {NORMS.get(norm, norm)} (pixel units); in the corner the predicted class, red where wrong"
    figure.supxlabel(words, fontsize=8)
    return figure


def class_labels(names: Sequence[str], letters: int) -> Callable[[int], str]:
    """Return the function that names a class in a figure, in at most so many letters.

    A long name keeps its beginning and its end. Names that are then alike, and those that the font of the figures
    cannot write, are replaced by the number of the class; -1, where the logits name no class, is "none".
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap() if names else {}
    short = [_shortened(" ".join(name.split()), letters) for name in names]
    times = Counter(short)

    def named(label: int) -> str:
        if label < 0:
            return "none"
        usable = (
            label < len(short) and times[short[label]] == 1 and all(ord(letter) in known for letter in short[label])
        )
        return short[label] if usable and short[label] else str(label)

    return named


def _shortened(name: str, letters: int) -> str:
    if len(name) <= letters:
        return name
    tail = letters // 3
    return f"{name[: letters - tail - 1]}…{name[-tail:]}"


def _grid(title: str, width: float, height: float, rows: int, columns: int) -> tuple[Figure, Any]:
    """Make a figure of `width` x `height` inches, higher for a long title; return it and its axes (rows, columns)."""
    title = textwrap.fill(title, int(11 * width))  # letters an inch at this size
    figure = new_figure(figsize=(width, height + 0.16 * title.count("\n")), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False)


def show_image(axis: Axes, image: np.ndarray) -> None:
    """Draw an image (C, H, W) in [0, 1]."""
    picture = np.moveaxis(image, 0, -1)
    axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
