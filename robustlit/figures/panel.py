"""One panel of accuracy lines, each named beside the axes: the layout that every accuracy figure shares."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from robustlit.figures.notebook import new_figure, quiet_about_letters
from robustlit.results.verdict import BELIEVABLE, FAIL, INCONCLUSIVE, OVERSTATED, PASS, UNDECIDED, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, distinguishable with any colour vision; the line style distinguishes lines in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("", "s", "^", "D", "v", "P", "X")  # from the eighth line on, where the colours repeat
KNOWLEDGE_STYLES = {"greybox": "--", "adaptive": "-", "blackbox": ":"}  # of one attack: three lines of one colour
NORMS = {"l2": "L2", "linf": "L∞", "l1": "L1", "l0": "L0"}
UNITS = {n: f"{name} distance ({'values changed' if n == 'l0' else 'pixel units'})" for n, name in NORMS.items()}
CHECKS = {PASS: "#009E73", FAIL: "#D55E00", INCONCLUSIVE: "#7A7A7A"}  # of a check, always beside its word
# Of the figure that was judged. A believable one may be low, so none is green.
FIGURES = {BELIEVABLE: "#0072B2", OVERSTATED: "#D55E00", UNDECIDED: "#7A7A7A"}
INK, FAINT = "#222222", "#666666"
_NOTE_WIDTH = 125  # characters in a line of notes
_NOTE_LINES, _NOTE_HEIGHT = 4, 0.117  # lines of notes that a figure has room for; inches of each further one
_WIDE, _THIN = 1.8, 0.9  # of a line where it is exact, and of one that is an upper bound


@dataclass(frozen=True)
class Look:
    """Colour, line style and marker of a line."""

    colour: str
    style: str
    marker: str = ""

    @classmethod
    def number(cls, number: int, style: str | None = None) -> Look:
        """Return the look of the line of that number; `style` where the line style has a meaning of its own."""
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        return cls(COLOURS[number % len(COLOURS)], style or STYLES[number % len(STYLES)], marker)


@dataclass(frozen=True)
class Line:
    """Accuracy against distance, ready to draw."""

    name: str
    values: np.ndarray  # (P, 4) rows: distance in pixel units, accuracy, low and high as shares in [0, 1]
    look: Look
    goes_on: bool = False  # known to continue at its last accuracy: a minimal attack found nothing farther away
    points: bool = False  # a marker at each point, joined by straight lines, instead of steps
    # (S, 4) the only rows where it is exact, with dots and bars; elsewhere it is an upper bound. None: exact everywhere
    stops: np.ndarray | None = None

    @property
    def banded(self) -> bool:
        """Whether its intervals are drawn as a band, not as bars."""
        return not self.points and (self.stops is None or not len(self.stops))

    @property
    def width(self) -> float:
        """Width in points."""
        return _WIDE if self.stops is None else _THIN


WILSON = "Wilson 95 %"


@dataclass
class Panel:
    """The words of an accuracy figure."""

    distance: str  # of the x axis
    subject: str  # the first part of the title
    counts: str  # number of examples and more, the last part of the title
    style: str = "curve"  # or "report": mean distance on the x axis
    notes: list[str] = field(default_factory=list)  # sentences in small print below the axes
    verdict: Verdict | None = None  # for a line below the title
    intervals: str = WILSON  # what bands and bars show

    def figure(self, lines: Sequence[Line]) -> Figure:
        """Draw lines, without pyplot and its settings."""
        figure, axes, height = panel_axes(len(lines))
        band = 0.15 if len(lines) < 5 else 0.08 if len(lines) < 13 else 0.04  # many opaque bands would hide the lines
        for line in lines:
            _draw(axes, line, band)
        farthest = max((float(line.values[:, 0].max()) for line in lines), default=0.0) or 1.0
        axes.set(xlim=(-0.01 * farthest, 1.02 * farthest), ylim=(-3, 103), ylabel="accuracy (%)")
        _name_lines(axes, lines, gap=19 / (height - 0.6))
        unit = UNITS[self.distance]
        of_report = f"mean {unit.replace(' (', ' of the adversarial examples (')}"
        axes.set_xlabel(of_report if self.style == "report" else unit)
        title = f"{self.subject} against {NORMS[self.distance]} distance, {self.counts}"
        shown = sorted({"bands" if line.banded else "bars" for line in lines})
        intervals = [f"{' and '.join(shown).capitalize()}: {self.intervals}."] if shown else []
        finish(figure, axes, title, [*dict.fromkeys(self.notes), *intervals], self.verdict)
        return figure


def panel_axes(lines: int) -> tuple[Figure, Axes, float]:
    """Make a figure that has room for the names of so many lines; return it, its axes and its height in inches."""
    height = max(4.4, 0.8 + 0.21 * lines)
    figure = new_figure(figsize=(7.2, height), dpi=150, layout="constrained")
    return figure, figure.subplots(), height


def finish(figure: Figure, axes: Axes, title: str, notes: Sequence[str], verdict: Verdict | None = None) -> None:
    """Add the title, the verdict's headline, the notes and a faint grid."""
    figure.suptitle(textwrap.fill(title, 72), fontsize=11, x=0.01, ha="left", parse_math=False)
    if verdict is not None:
        headline = textwrap.fill(named_norms(verdict.headline), 84)
        colour, weight = figure_colour(verdict), "bold" if verdict.status == OVERSTATED else "normal"
        axes.set_title(headline, fontsize=9, loc="left", parse_math=False, color=colour, weight=weight)
    _add_notes(figure, " ".join(notes))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _add_notes(figure: Figure, notes: str) -> None:
    """Write notes in small print below the axes, in lines that fit, and make the figure higher where they are many."""
    small = textwrap.fill(notes, _NOTE_WIDTH)
    text = figure.supxlabel(small, fontsize=7, color=FAINT, x=0.01, ha="left", parse_math=False)
    with quiet_about_letters():
        share = text.get_window_extent().width / (0.98 * figure.bbox.width)
    if share > 1:  # of wide letters
        small = textwrap.fill(notes, int(_NOTE_WIDTH / share))
        text.set_text(small)
    further = max(0, small.count("\n") + 1 - _NOTE_LINES)
    figure.set_figheight(figure.get_figheight() + _NOTE_HEIGHT * further)


def figure_colour(verdict: Verdict) -> str:
    """Return the colour of a verdict's title: neutral where no example is robust."""
    return INK if verdict.none_robust and verdict.status == BELIEVABLE else FIGURES[verdict.status]


def named_norms(text: str) -> str:
    """Return the headline of a verdict with norms written as in figures."""
    return text.replace(" linf ", " L∞ ").replace(" l2 ", " L2 ")


def by_value(values: Mapping[str, str]) -> str:
    """Return names grouped by their values, as a sentence part."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in groups.items())


def worst_case_note(attacks: Mapping[str, str], what: str) -> str:
    """Return a sentence on the attacks (by name of the run) that worst cases rest on; `what` is drawn of each run."""
    if len(set(attacks.values())) == 1:
        return f"Worst case over {next(iter(attacks.values()))}."
    return f"The worst cases rest on different attacks, so {what} differ by those too. {by_value(attacks)}."


def _draw(axes: Axes, line: Line, band: float) -> None:
    look, x, (y, low, high) = line.look, line.values[:, 0], 100 * line.values[:, 1:].T
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.style, "linewidth": line.width}
    if line.points:
        axes.plot(x, y, marker=look.marker or "o", markersize=4, **style)
        axes.errorbar(x, y, (y - low, high - y), fmt="none", ecolor=look.colour, alpha=0.5, elinewidth=1)
        return
    axes.plot(x, y, drawstyle="steps-post", marker=look.marker, markersize=4.5, markevery=0.12, **style)
    if line.banded:
        axes.fill_between(x, low, high, step="post", color=look.colour, alpha=band, linewidth=0)
    elif line.stops is not None:
        at, (right, least, most) = line.stops[:, 0], 100 * line.stops[:, 1:].T
        axes.plot(at, right, marker="o", markersize=3.5, color=look.colour, linestyle="")
        bars = (np.maximum(right - least, 0), np.maximum(most - right, 0))
        axes.errorbar(at, right, bars, fmt="none", ecolor=look.colour, alpha=0.4, elinewidth=2.5)
    axes.plot(x[-1], y[-1], marker="o", markersize=4, color=look.colour)


def _name_lines(axes: Axes, lines: Sequence[Line], gap: float) -> None:
    """Write names in a column beside the axes, each with a piece of its line, tied to the end of the line."""
    right, last = axes.get_xlim()[1], [100 * float(line.values[-1, 1]) for line in lines]
    for line, y, place in zip(lines, last, spread(last, gap), strict=True):
        look, x = line.look, float(line.values[-1, 0])
        if line.goes_on and y > 0:
            axes.plot([x, right], [y, y], color=look.colour, linewidth=0.8)
            x = right
        tie(axes, (x, y), (1.03, place), look.colour)
        axes.plot(
            [1.035, 1.0575, 1.08], [place] * 3, look.style, transform=axes.get_yaxis_transform(), color=look.colour,
            linewidth=line.width, clip_on=False, marker=look.marker, markersize=4.5, markevery=[1],
        )  # fmt: skip
        name_beside(axes, (1.09, place), line.name)


def tie(axes: Axes, point: tuple[float, float], place: tuple[float, float], colour: str) -> None:
    """Draw a dotted connection from a point to a place beside the axes (share of their width, accuracy)."""
    from matplotlib.patches import ConnectionPatch

    dotted: dict[str, Any] = {"color": colour, "alpha": 0.7, "linewidth": 0.6, "linestyle": (0, (1, 3))}
    patch = ConnectionPatch(point, place, axes.transData, axes.get_yaxis_transform(), **dotted)
    patch.set_in_layout(False)
    patch.set_clip_on(False)
    axes.add_artist(patch)


def name_beside(axes: Axes, place: tuple[float, float], name: str) -> None:
    """Write a name beside the axes."""
    axes.text(*place, name, transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=9, parse_math=False)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move values in [0, 100] apart as little as keeps them `gap` apart, in order and within these bounds."""
    order = np.argsort(values, kind="stable")
    gap = min(gap, 100 / max(1, len(values) - 1))
    steps = gap * np.arange(len(values))
    # Without the gaps it is an isotonic regression: neighbours in the wrong order share their mean.
    pools: list[list[float]] = []
    for wanted in np.asarray(values, dtype=float)[order] - steps:
        pools.append([float(wanted)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    placed = np.array([np.mean(pool) for pool in pools for _ in pool])
    result = np.empty(len(values))
    result[order] = np.clip(placed, 0, 100 - gap * (len(values) - 1)) + steps
    return [float(v) for v in result]
