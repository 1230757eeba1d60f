"""What `robustlit explore` draws: slices of decision regions, pairs of classes, training images nearby."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robustlit.figures.images import class_labels, show_image
from robustlit.figures.notebook import new_figure
from robustlit.figures.panel import FAINT
from robustlit.results.geometry import Neighbours, Pairs, Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 9  # classes of a slice with a colour of their own, the largest; the others are grey
_REST = "#BBBBBB"
_LETTERS = 12
_MOST_CELLS = 12  # classes of a matrix whose numbers are written
_MARKERS = ("o", "X", "s")


@dataclass(frozen=True)
class Seen:
    """What is drawn of one net around one example.

    Args:
        name: Of the net.
        images: Title -> image (C, H, W) in [0, 1].
        plane, random: Slices through the images, and along two random directions.
    """

    name: str
    images: Mapping[str, np.ndarray]
    plane: Slice
    random: Slice


def slices_figure(seen: Sequence[Seen], title: str, *, names: Sequence[str] = ()) -> Figure:
    """Draw the decision regions around one example, a row a net: the images, the plane through them, a random plane."""
    name_of = class_labels(names, _LETTERS)
    colours = _colours([each for net in seen for each in (net.plane, net.random)])
    height = 3.5 * len(seen) + 1.2
    figure = new_figure(figsize=(10.5, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    for part, net in zip(figure.subfigures(len(seen), 1, squeeze=False)[:, 0], seen, strict=True):
        part.suptitle(net.name, fontsize=10, weight="bold", x=0.01, ha="left", parse_math=False)
        left, middle, right = part.subfigures(1, 3, width_ratios=(0.55, 1, 1))
        pictures = left.subplots(len(net.images), 1)
        for axes, (words, image), marker in zip(np.atleast_1d(pictures), net.images.items(), _MARKERS, strict=False):
            show_image(axes, image)
            axes.set_title(f"{_SIGNS[marker]} {words}", fontsize=7.5, pad=2, parse_math=False)
        _draw_slice(middle.subplots(), net.plane, colours, "the plane through the three images")
        _draw_slice(right.subplots(), net.random, colours, "a plane along two random directions")
    _class_legend(figure, colours, name_of)
    note = "Distances: L2, pixel units. Dotted: outside the box of pixels, judged at the nearest image in it."
    figure.supxlabel(note, fontsize=7.5, color=FAINT, x=0.01, ha="left")
    return figure


_SIGNS = {"o": "●", "X": "✖", "s": "■"}


def _colours(slices: Sequence[Slice]) -> dict[int, Any]:
    """Return class -> colour, for the classes with the largest regions, ascending."""
    from matplotlib import colormaps

    every, count = np.unique(np.concatenate([each.classes.ravel() for each in slices]), return_counts=True)
    largest = sorted(every[np.argsort(-count, kind="stable")][:_NAMED])
    palette = colormaps["Set3"].colors  # type: ignore[attr-defined]
    palette = [colour for colour in palette if len({*np.round(colour, 2)}) > 1]  # its grey is for the others
    return {int(label): palette[number % len(palette)] for number, label in enumerate(largest)}


def _draw_slice(axes: Axes, plane: Slice, colours: Mapping[int, Any], title: str) -> None:
    from matplotlib.colors import to_rgb

    picture = np.empty((*plane.classes.shape, 3))
    picture[:] = to_rgb(_REST)
    for label, colour in colours.items():
        picture[plane.classes == label] = to_rgb(colour)
    extent = (plane.across[0], plane.across[-1], plane.up[0], plane.up[-1])
    axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest")
    for label in np.unique(plane.classes):
        region = (plane.classes == label).astype(float)
        if 0 < region.mean() < 1:
            axes.contour(plane.across, plane.up, region, levels=[0.5], colors="black", linewidths=0.7)
    if not plane.inside.all():
        outside = np.where(plane.inside, np.nan, 1.0)
        dots = axes.contourf(plane.across, plane.up, outside, levels=[0.5, 1.5], colors="none", hatches=["..."])
        dots.set(edgecolor="#00000040", linewidth=0)
    for (x, y), marker in zip(plane.points.values(), _MARKERS, strict=False):
        axes.plot(x, y, marker, markersize=8, color="black", markeredgecolor="white", markeredgewidth=1)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)


def _class_legend(figure: Figure, colours: Mapping[int, Any], name_of: Callable[[int], str]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=name_of(label))
        for label, colour in colours.items()
    ]
    if len(colours) == _NAMED:
        patches.append(Patch(facecolor=_REST, edgecolor="black", linewidth=0.5, label="others"))
    legend = figure.legend(
        handles=patches, loc="outside right upper", fontsize=8, frameon=False, title="taken for", title_fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def pairs_figure(measured: Mapping[str, Pairs], title: str, *, names: Sequence[str] = ()) -> Figure:
    """Draw matrices of class pairs, a row a net: nearest distances from the row's class to the column's; margins."""
    name_of = class_labels(names, _LETTERS)
    figure = new_figure(figsize=(11, 4.9 * len(measured) + 0.6), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    grid = figure.subplots(len(measured), 2, squeeze=False)
    for kind, (field, words, colours) in enumerate(_MATRICES):
        values = [getattr(each, field) for each in measured.values()]
        shown = [v[np.isfinite(v)] for v in values]
        top = max((float(v.max()) for v in shown if len(v)), default=1.0)
        for row, (name, each) in enumerate(measured.items()):
            _draw_matrix(grid[row, kind], each, values[row], (colours, top), name_of)
            grid[row, kind].set_title(f"{name}: {words}", fontsize=9, loc="left", parse_math=False)
    return figure


_MATRICES = (
    ("distance", "median L2 to the nearest image taken for the column", "viridis"),
    ("margin", "mean margin of logits, clean images of the row", "cividis"),
)


def _draw_matrix(
    axes: Axes, each: Pairs, values: np.ndarray, scale: tuple[str, float], name_of: Callable[[int], str]
) -> None:
    from matplotlib import colormaps

    colours, top = scale
    hidden = np.ma.masked_invalid(np.where(np.eye(len(values), dtype=bool), np.nan, values))
    axes.imshow(hidden, cmap=colours, vmin=0, vmax=top)
    labels = [name_of(label) for label in each.classes]
    axes.set_xticks(range(len(labels)), labels, fontsize=7, rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set(xlabel="taken for", ylabel="true class")
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)
    if len(labels) <= _MOST_CELLS:
        for (row, column), value in np.ndenumerate(hidden.filled(np.nan)):
            if np.isfinite(value):
                dark = sum(colormaps[colours](value / top if top else 0.0)[:3]) < 1.5
                axes.text(
                    column, row, f"{value:.1f}", ha="center", va="center", fontsize=6.5,
                    color="white" if dark else "black",
                )  # fmt: skip


def neighbours_figure(measured: Mapping[str, Neighbours], title: str) -> Figure:
    """Draw distances to the nearest training images, a panel a net: clean images, and their adversarial examples."""
    figure = new_figure(figsize=(5.2 * len(measured), 5.4), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    every = [value for each in measured.values() for value in (each.own, each.other, each.adversarial_taken)]
    top = 1.05 * max(float(value[np.isfinite(value)].max(initial=0)) for value in every)
    for axes, (name, each) in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured.items(), strict=True):
        axes.plot([0, top], [0, top], color="black", linewidth=0.8)
        axes.scatter(each.own, each.other, s=14, color="#0072B2", label="clean; the other class is the nearest")
        axes.scatter(
            each.adversarial_own, each.adversarial_taken, s=18, marker="x", color="#D55E00",
            label="nearest adversarial; the other class is the one it is taken for",
        )  # fmt: skip
        found = each.summary()
        words = (
            f"{100 * found['share_nearer_to_own_class']:.0f} % of adversarial examples lie nearer to their own class\n"
            f"median size {found['median_size']:.2f}, {100 * found['median_size_over_gap']:.0f} % of the way's length"
            f"\nto the nearest training image of another class ({found['median_other']:.2f})"
        )
        axes.set(
            xlim=(0, top), ylim=(0, top), aspect="equal", xlabel="L2 to the nearest training image of its own class"
        )
        axes.set_title(f"{name}, n = {found['n']:.0f}\n{words}", fontsize=8, loc="left", parse_math=False)
        axes.set_ylabel("L2 to the nearest of the other class")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, loc="lower right")
    note = "Above the diagonal an image is nearer to training images of its own class."
    figure.supxlabel(note, fontsize=7.5, color=FAINT, x=0.01, ha="left")
    return figure
