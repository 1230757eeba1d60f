"""One panel of lines, each named beside the axes: the manner that every accuracy figure shares."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart with any colour vision; the line style tells them apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("", "s", "^", "D", "v", "P", "X")  # from the eighth line on, whose colour comes again
KNOWLEDGE_STYLES = {"greybox": "--", "adaptive": "-", "blackbox": ":"}  # of one attack: three lines of one colour
NORMS = {"l2": "L2", "linf": "L∞", "l1": "L1", "l0": "L0"}
UNITS = {
    "l2": "L2 distance (pixel units)",
    "linf": "L∞ distance (pixel units)",
    "l1": "L1 distance (pixel units)",
    "l0": "L0 distance (values changed)",
}
_WIDE, _THIN = 1.8, 0.9  # of a line where it is exact, and of one that is an upper bound
VERDICTS = {PASS: "#009E73", FAIL: "#D55E00", INCONCLUSIVE: "#7A7A7A"}  # of a verdict, always beside its word
_INK, _FAINT = "#222222", "#666666"


@dataclass(frozen=True)
class Look:
    """Colour, line style and marker of a line."""

    colour: str
    style: str
    marker: str = ""

    @classmethod
    def number(cls, number: int, style: str | None = None) -> Look:
        """The look of the line of that number; `style` where the line style means something of its own."""
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        return cls(COLOURS[number % len(COLOURS)], style or STYLES[number % len(STYLES)], marker)


@dataclass(frozen=True)
class Line:
    """Accuracy against distance, ready to draw.

    Args:
        name: what stands beside it.
        x: distances, pixel units.
        y, low, high: accuracy and its interval, shares in [0, 1].
        look: how it is drawn.
        goes_on: whether it is known to go on as it ends: a minimal attack found nothing farther away either.
        points: a marker at each point, joined by straight lines, instead of steps.
        stops: (S, 4) rows (distance, accuracy, low, high) at which alone it is exact, drawn as dots with bars, not a
            band; elsewhere it is an upper bound, and thin. None where it is exact everywhere.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    look: Look
    goes_on: bool = False
    points: bool = False
    stops: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        name: str,
        values: np.ndarray,
        look: Look,
        goes_on: bool = False,
        points: bool = False,
        stops: np.ndarray | None = None,
    ) -> Line:
        """A line of rows (distance, accuracy, low, high): (P, 4)."""
        return cls(name, values[:, 0], values[:, 1], values[:, 2], values[:, 3], look, goes_on, points, stops)

    @property
    def banded(self) -> bool:
        """Whether its intervals are a band, not bars."""
        return not self.points and (self.stops is None or not len(self.stops))

    @property
    def width(self) -> float:
        """Of the line as drawn, in points."""
        return _WIDE if self.stops is None else _THIN


@dataclass
class Panel:
    """Lines with their names, a title and small notes below.

    Args:
        distance: l0, l1, l2 or linf, the distance of the x axis.
        title: above the axes; wrapped where it is long.
        lines: what is drawn.
        notes: sentences in small print below.
        xlabel: None takes the distance and its unit.
        verdict: whether the accuracies are to be believed, for a line below the title.
    """

    distance: str
    title: str
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    xlabel: str | None = None
    verdict: Verdict | None = None

    def figure(self) -> Figure:
        """Draws it, without pyplot and its settings."""
        from matplotlib.figure import Figure

        count = len(self.lines)
        height = max(4.4, 0.8 + 0.21 * count)
        figure = Figure(figsize=(7.2, height), dpi=150, layout="constrained")
        axes = figure.subplots()
        for line in self.lines:
            _draw(axes, line, band=0.15 if count < 5 else 0.08 if count < 13 else 0.04)  # many bands hide the lines
        farthest = max((float(line.x.max()) for line in self.lines), default=0.0) or 1.0
        axes.set_xlim(-0.01 * farthest, 1.02 * farthest)
        axes.set_ylim(-3, 103)
        name_beside(axes, self.lines, gap=19 / (height - 0.6))
        axes.set_xlabel(self.xlabel or UNITS[self.distance])
        axes.set_ylabel("accuracy (%)")
        finish(
            figure,
            axes,
            self.title,
            [*self.notes, *self._intervals()],
            self.verdict,
        )
        return figure

    def _intervals(self) -> list[str]:
        """What the bands and bars are, of those that there are."""
        bands = any(line.banded for line in self.lines)
        bars = not all(line.banded for line in self.lines)
        kinds = " and ".join(kind for kind, there in (("bands", bands), ("bars", bars)) if there)
        return [f"{kinds.capitalize()}: Wilson 95 %."] if kinds else []


def finish(figure: Figure, axes: Axes, title: str, notes: Sequence[str], verdict: Verdict | None = None) -> None:
    """Title above, with the verdict, notes below, a faint grid."""
    figure.suptitle(textwrap.fill(title, 72), fontsize=11, x=0.01, ha="left", parse_math=False)
    if verdict is not None:
        axes.set_title(
            textwrap.fill(named_norms(verdict.headline), 84), fontsize=9, loc="left", parse_math=False,
            color=VERDICTS[verdict.status], weight="bold" if verdict.status == FAIL else "normal",
        )  # fmt: skip
    small = textwrap.fill(" ".join(notes), 125)
    figure.supxlabel(small, fontsize=7, color=_FAINT, x=0.01, ha="left", parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def named_norms(text: str) -> str:
    """The headline of a verdict as figures write norms."""
    return text.replace(" linf ", " L∞ ").replace(" l2 ", " L2 ")


def by_attacks(attacks: Mapping[str, str]) -> str:
    """Names grouped by the attacks that they rest on, in words."""
    groups: dict[str, list[str]] = {}
    for name, over in attacks.items():
        groups.setdefault(over, []).append(name)
    return "; ".join(f"{', '.join(names)}: {over}" for over, names in groups.items())


def _draw(axes: Axes, line: Line, band: float) -> None:
    look, x, y = line.look, line.x, 100 * line.y
    low, high = 100 * line.low, 100 * line.high
    if line.points:
        axes.plot(
            x, y, marker=look.marker or "o", markersize=4, color=look.colour, linestyle=look.style, linewidth=_WIDE
        )
        axes.errorbar(x, y, (y - low, high - y), fmt="none", ecolor=look.colour, alpha=0.5, elinewidth=1)
        return
    axes.plot(
        x, y, drawstyle="steps-post", color=look.colour, linestyle=look.style, linewidth=line.width, marker=look.marker,
        markersize=4.5, markevery=0.12,
    )  # fmt: skip
    if line.banded:
        axes.fill_between(x, low, high, step="post", color=look.colour, alpha=band, linewidth=0)
    elif line.stops is not None:
        at, (right, least, most) = line.stops[:, 0], 100 * line.stops[:, 1:].T
        axes.plot(at, right, marker="o", markersize=3.5, color=look.colour, linestyle="")
        bars = (np.maximum(right - least, 0), np.maximum(most - right, 0))
        axes.errorbar(at, right, bars, fmt="none", ecolor=look.colour, alpha=0.4, elinewidth=2.5)
    axes.plot(x[-1], y[-1], marker="o", markersize=4, color=look.colour)


def name_beside(axes: Axes, lines: Sequence[Line], gap: float) -> None:
    """Names in a column beside the axes, each with a piece of its line, tied to where the line ends."""
    from matplotlib.patches import ConnectionPatch

    beside = axes.get_yaxis_transform()
    right = axes.get_xlim()[1]
    places = spread([100 * float(line.y[-1]) for line in lines], gap)
    for line, place in zip(lines, places, strict=True):
        look, end = line.look, (float(line.x[-1]), 100 * float(line.y[-1]))
        if line.goes_on and end[1] > 0:
            axes.plot([end[0], right], [end[1], end[1]], color=look.colour, linewidth=0.8)
            end = (right, end[1])
        tie = ConnectionPatch(
            end, (1.03, place), axes.transData, beside, color=look.colour, alpha=0.7, linewidth=0.6,
            linestyle=(0, (1, 3)),
        )  # fmt: skip
        tie.set_in_layout(False)
        tie.set_clip_on(False)
        axes.add_artist(tie)
        axes.plot(
            [1.035, 1.0575, 1.08], [place] * 3, look.style, transform=beside, color=look.colour, linewidth=line.width,
            clip_on=False, marker=look.marker, markersize=4.5, markevery=[1],
        )  # fmt: skip
        axes.text(1.09, place, line.name, transform=beside, va="center", color=_INK, fontsize=9, parse_math=False)


def spread(values: Sequence[float], gap: float, low: float = 0.0, high: float = 100.0) -> list[float]:
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
