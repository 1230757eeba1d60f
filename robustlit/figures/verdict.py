"""Draw a verdict as a table: one row per check, with its status and its figure against the limit."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from robustlit.checks import budget_text
from robustlit.figures.notebook import new_figure
from robustlit.figures.panel import CHECKS, FAINT, INK, NORMS, figure_colour, named_norms
from robustlit.results.rows import Row, rows_of
from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Check, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NONE = "no detector"  # check 20 is made only for models with a detector
# A status differs by shape and word as well as by colour.
_COLOURS = {**CHECKS, _NONE: "#7A7A7A"}
_SHAPES = {PASS: "o", FAIL: "X", INCONCLUSIVE: "D", _NONE: "_"}
_WORDS = {PASS: "pass", FAIL: "FAIL", INCONCLUSIVE: "undecided", _NONE: "none"}
_DETECTOR = Check(20, "the detector was attacked too", _NONE, "the model has no detector")
_WIDTH, _LINE, _PAD = 10.8, 0.165, 0.11  # inches: the figure, a line of text, the padding of a row
_NUMBER, _NAME, _SHAPE, _STATUS, _GAUGE, _FIGURE, _FINDING = 0.25, 0.35, 3.78, 3.9, 4.7, 5.66, 6.83
_GAUGE_WIDTH = 0.85  # inches; the limit is in the middle
_LETTERS, _NAME_LETTERS = 73, 24  # of a finding on one line, of the run's name in the title
_IN_COLUMN = re.compile(r" \((?:[^()]*; )?at most [^()]*\)")
_HEAD, _FOOT = 0.92, 0.42
_NEUTRAL = "#7A7A7A"  # of checks that pass because nothing is robust: never green beside 0 %


def verdict_figure(verdict: Verdict, *, name: str = "", n: int | None = None) -> Figure:
    """Draw the checks of a verdict as a table.

    Args:
        name: Name of the run, for the title.
        n: Number of images that were evaluated; `verdict.n` of them were probed.
    """
    checks = [*verdict.checks, *([] if any(c.number == _DETECTOR.number for c in verdict.checks) else [_DETECTOR])]
    # Without the share and its limit, which have their own column.
    found = [(row, named_norms(_IN_COLUMN.sub("", row.first.finding))) for row in rows_of(checks)]
    rows = [(row, textwrap.wrap(finding, _LETTERS) or [""]) for row, finding in found]
    heights = [_LINE * len(lines) + _PAD for _, lines in rows]
    height = _HEAD + sum(heights) + _FOOT
    figure = new_figure(figsize=(_WIDTH, height), dpi=104)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _WIDTH), ylim=(0, height))  # in inches
    axes.axis("off")
    _head(axes, verdict, height, name, n)
    top = height - _HEAD
    for number, ((row, lines), tall) in enumerate(zip(rows, heights, strict=True)):
        if row.first.status == FAIL:
            axes.axhspan(top - tall, top, color=_COLOURS[FAIL], alpha=0.12, linewidth=0)
        elif number % 2 == 0:
            axes.axhspan(top - tall, top, color="black", alpha=0.03, linewidth=0)
        _row(axes, row, lines, top - tall / 2, _NEUTRAL if verdict.none_robust else _COLOURS[PASS])
        top -= tall
    _text(axes, 0.1, _FOOT / 2, f"{verdict.caution}.", 8, style="italic")
    return figure


def _text(axes: Axes, x: float, y: float, text: str, size: float, color: str = INK, **style: Any) -> None:
    axes.text(x, y, text, va="center", fontsize=size, color=color, parse_math=False, **style)


def _head(axes: Axes, verdict: Verdict, height: float, name: str, n: int | None) -> None:
    counts = verdict.counts
    short = name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"
    title = f"{short + ': ' if name else ''}{verdict.title}"
    _text(axes, 0.1, height - 0.22, title, 12, figure_colour(verdict), weight="bold")
    seen = f"n = {verdict.n} images probed" + (f", of {n} evaluated" if n is not None else "")
    text = (
        f"{NORMS.get(verdict.norm, verdict.norm)} eps {budget_text(verdict.eps)} (pixel units), {seen}, profile "
        f"{verdict.profile}: {counts[PASS]} checks pass, {counts[FAIL]} fail, {counts[INCONCLUSIVE]} undecided"
    )
    _text(axes, 0.1, height - 0.5, text, 9.5)
    heads = {_NAME: "check", _STATUS: "status", _GAUGE: "limit", _FIGURE: "found (at most)", _FINDING: "finding"}
    for x, head in heads.items():
        middle = x == _GAUGE
        place = x + _GAUGE_WIDTH / 2 if middle else x
        _text(axes, place, height - _HEAD + 0.11, head, 8, FAINT, ha="center" if middle else "left")
    axes.axhline(height - _HEAD, color=FAINT, linewidth=0.6)


def _row(axes: Axes, row: Row, lines: list[str], y: float, passed: str) -> None:
    check, several = row.first, len(row.checks) > 1
    colour, weight = {**_COLOURS, PASS: passed}[check.status], "bold" if check.status == FAIL else "normal"
    fill = colour if check.status != INCONCLUSIVE else "white"
    if not several:
        _text(axes, _NUMBER, y, row.numbers, 8, FAINT, ha="right")
    name = textwrap.shorten(f"{row.numbers}: {row.name}", 45) if several else row.name
    _text(axes, _NAME, y, name, 9, weight=weight)
    axes.plot(_SHAPE, y, _SHAPES[check.status], color=colour, markerfacecolor=fill, markersize=6.5)
    _text(axes, _STATUS, y, _WORDS[check.status], 9, colour, weight=weight)
    found = "" if check.figure is None else _percent(check.figure)
    if check.figure is not None and check.threshold is not None:
        _gauge(axes, check.figure, check.threshold, y, colour)
        found += f"  ({_percent(check.threshold)})"
    _text(axes, _FIGURE, y, found, 8.5)
    _text(axes, _FINDING, y, "\n".join(lines), 7, linespacing=1.25)


def _gauge(axes: Axes, found: float, limit: float, y: float, colour: str) -> None:
    """Draw a bar from 0 to twice the limit, which is marked; a longer one ends in an arrow."""
    ratio = found / limit if limit > 0 else (0.0 if found <= 0 else 3.0)
    end = _GAUGE + _GAUGE_WIDTH * min(max(ratio, 0.0), 2.0) / 2
    axes.plot([_GAUGE, _GAUGE + _GAUGE_WIDTH], [y, y], color="#CCCCCC", linewidth=1.2, solid_capstyle="butt")
    axes.plot([_GAUGE, end], [y, y], color=colour, linewidth=4.5, solid_capstyle="butt")
    if ratio > 2:
        axes.plot(end + 0.02, y, ">", color=colour, markersize=5.5)
    middle = _GAUGE + _GAUGE_WIDTH / 2
    axes.plot([middle, middle], [y - 0.075, y + 0.075], color=INK, linewidth=1.1)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
