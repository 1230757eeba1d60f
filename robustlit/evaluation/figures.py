"""Figures and curve tables, drawn from an Evaluation alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from robustlit.evaluation.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart with any colour vision; the line style tells them apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
KNOWLEDGE_STYLES = {"greybox": "--", "adaptive": "-", "blackbox": ":"}  # of one attack: three lines of one colour
UNITS = {
    "l2": "L2 distance (pixel units)",
    "linf": "L∞ distance (pixel units)",
    "l1": "L1 distance",
    "l0": "values changed",
}


def distance_grid(end: float, points: int = 101) -> np.ndarray:
    """Evenly spaced distances from 0 to `end`: curves read at the same points overlay across runs."""
    return np.linspace(0.0, end, points)


def curves_csv(evaluation: Evaluation, distance: str, at: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """Every attack's accuracy against distance as one long table: attack, knowledge, distance, accuracy, low, high."""
    parts = []
    for attack, knowledge in evaluation.runs:
        curve = evaluation.curve(attack, distance=distance, knowledge=knowledge, at=at)
        curve.insert(0, "attack", attack)
        curve.insert(1, "knowledge", knowledge)
        parts.append(curve)
    return pd.concat(parts, ignore_index=True)


def curves_figure(evaluation: Evaluation, distance: str = "l2") -> Figure:
    """One model under many attacks: accuracy against distance, a line an attack, with Wilson 95 % bands.

    A line ends, with a dot, at the farthest witness of its attack; beyond, where nothing is known, it is a thin one.
    Where attacks ran with several kinds of knowledge, those of one attack share its colour: adaptive is drawn through,
    grey-box dashed, black-box dotted.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    clean = evaluation.clean_accuracy
    alpha = 0.15 if len(evaluation.runs) < 5 else 0.08  # many bands on top of one another hide the lines
    ends: list[tuple[float, float, str, str, str]] = []
    several = len({knowledge for _, knowledge in evaluation.runs}) > 1
    for attack, knowledge in evaluation.runs:
        number = evaluation.attacks.index(attack)
        curve = evaluation.curve(attack, distance=distance, knowledge=knowledge)
        colour = COLOURS[number % len(COLOURS)]
        style = KNOWLEDGE_STYLES[knowledge] if several else STYLES[number % len(STYLES)]
        x, y = curve["distance"].to_numpy(), 100 * curve["accuracy"].to_numpy()
        axes.step(x, y, where="post", color=colour, linestyle=style, linewidth=1.8)
        axes.fill_between(
            x, 100 * curve["low"], 100 * curve["high"], step="post", color=colour, alpha=alpha, linewidth=0
        )
        axes.plot(x[-1], y[-1], marker="o", markersize=4, color=colour)
        ends.append((float(x[-1]), float(y[-1]), evaluation.label(attack, knowledge), colour, style))
    farthest = max(x_end for x_end, *_ in ends) or 1.0
    axes.set_xlim(-0.01 * farthest, 1.02 * farthest)
    # The names stand in a column beside the axes, each tied to its line by a thin one.
    beside = axes.get_yaxis_transform()
    labels = _spread([e[1] for e in ends], 5.0)
    for (x_end, y_end, name, colour, style), y_label in zip(ends, labels, strict=True):
        axes.plot([x_end, 1.02 * farthest], [y_end, y_end], color=colour, alpha=0.4, linewidth=0.7)
        axes.plot([1, 1.03], [y_end, y_label], transform=beside, color=colour, alpha=0.4, linewidth=0.7, clip_on=False)
        axes.plot([1.03, 1.08], [y_label, y_label], style, transform=beside, color=colour, linewidth=1.8, clip_on=False)
        axes.text(1.09, y_label, name, transform=beside, va="center", color=colour, fontsize=9)
    axes.set(
        xlabel=UNITS[distance],
        ylabel="accuracy (%)",
        ylim=(-3, 103),
        title=f"Accuracy against {UNITS[distance].split(' (')[0]}: n = {evaluation.n}, clean {100 * clean:.1f} %"
        + ("" if evaluation.complete else " (cut short)"),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_curves(evaluation: Evaluation, distance: str, path: Path) -> None:
    """Writes `curves_figure` as `path`.png and `path`.svg."""
    figure = curves_figure(evaluation, distance)
    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"))


def _spread(values: Sequence[float], gap: float, low: float = 0.0, high: float = 100.0) -> list[float]:
    """The values moved apart as little as keeps them `gap` apart, in their order and within [low, high]."""
    order = np.argsort(values, kind="stable")
    gap = min(gap, (high - low) / max(1, len(values) - 1))
    steps = gap * np.arange(len(values))
    # Without the gaps it is an isotonic regression: neighbours in the wrong order share their mean.
    pools: list[list[float]] = []
    for wanted in np.asarray(values, dtype=float)[order] - steps:
        pools.append([float(wanted)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    placed = np.array([np.mean(pool) for pool in pools for _ in pool])
    result = np.empty(len(values))
    result[order] = np.clip(placed, low, high - gap * (len(values) - 1)) + steps
    return [float(v) for v in result]


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
            picture = np.moveaxis(images[column], 0, -1)
            axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(name, fontsize=9)
            if predictions is not None:
                right = predictions[column] == labels[column]
                text = f"{labels[column]} → {predictions[column]}"
                axis.set_title(text, fontsize=9, color="black" if right else "#C00000", pad=3)
    figure.suptitle(title, fontsize=10)
    return figure
