"""The verdict at a glance: a row a check, its status by shape, colour and word, its figure against its threshold."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from robustlit.figures.panel import NORMS, VERDICTS, named_norms
from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Check, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NONE = "no detector"  # the one check that not every model has
# Told apart by shape and word as well as by colour.
_COLOURS = {**VERDICTS, _NONE: "#7A7A7A"}
_SHAPES = {PASS: "o", FAIL: "X", INCONCLUSIVE: "D", _NONE: "_"}
_WORDS = {PASS: "pass", FAIL: "FAIL", INCONCLUSIVE: "undecided", _NONE: "none"}
_DETECTOR = Check(20, "the detector was attacked too", _NONE, "the model has no detector")
_INK, _FAINT = "#222222", "#666666"
_WIDTH, _LINE, _PAD = 10.8, 0.165, 0.11  # inches: the figure, a line of text, what each row has beside its lines
_NUMBER, _NAME, _SHAPE, _STATUS, _GAUGE, _FIGURE, _FINDING = 0.25, 0.35, 3.78, 3.9, 4.7, 5.66, 6.83
_GAUGE_WIDTH = 0.85  # inches, of which the threshold stands in the middle
_LETTERS = 73  # of a finding on one line
_NAME_LETTERS = 45  # of the run in the title
_HEAD, _FOOT = 0.92, 0.42


def verdict_figure(verdict: Verdict, *, name: str = "", n: int | None = None) -> Figure:
    """The checks of a verdict as a table that is read at a glance.

    Args:
        verdict: what was found.
        name: of the run, for the title.
        n: of the images that were evaluated; `verdict.n` of them were looked at again.
    """
    from matplotlib.figure import Figure

    checks = [*verdict.checks, *([] if any(c.number == _DETECTOR.number for c in verdict.checks) else [_DETECTOR])]
    rows = [(check, _words(check)) for check in checks]
    heights = [_LINE * len(lines) + _PAD for _, lines in rows]
    height = _HEAD + sum(heights) + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=104)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _WIDTH), ylim=(0, height))  # in inches
    axes.axis("off")
    _head(axes, verdict, height, name, n)
    top = height - _HEAD
    for number, ((check, lines), tall) in enumerate(zip(rows, heights, strict=True)):
        if check.status == FAIL:
            axes.axhspan(top - tall, top, color=_COLOURS[FAIL], alpha=0.12, linewidth=0)
        elif number % 2 == 0:
            axes.axhspan(top - tall, top, color="black", alpha=0.03, linewidth=0)
        _row(axes, check, lines, top, tall)
        top -= tall
    caution = f"{verdict.caution}."
    axes.text(0.1, _FOOT / 2, caution, va="center", fontsize=9, color=_INK, style="italic", parse_math=False)
    return figure


def _head(axes: Axes, verdict: Verdict, height: float, name: str, n: int | None) -> None:
    counts = verdict.counts
    short = name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"
    title = f"{short + ': ' if name else ''}verdict {verdict.status}"
    axes.text(
        0.1, height - 0.22, title, va="center", fontsize=14, weight="bold",
        color=_COLOURS[verdict.status], parse_math=False,
    )  # fmt: skip
    seen = f"n = {verdict.n} images probed" + (f", of {n} evaluated" if n is not None else "")
    text = (
        f"{NORMS.get(verdict.norm, verdict.norm)} eps {verdict.eps:.4g} (pixel units), {seen}, profile "
        f"{verdict.profile}: {counts[PASS]} passed, {counts[FAIL]} failed, {counts[INCONCLUSIVE]} undecided"
    )
    axes.text(0.1, height - 0.5, text, va="center", fontsize=9.5, color=_INK, parse_math=False)
    heads = (
        (_NAME, "check", "left"), (_STATUS, "status", "left"), (_GAUGE + _GAUGE_WIDTH / 2, "limit", "center"),
        (_FIGURE, "found (at most)", "left"), (_FINDING, "finding", "left"),
    )  # fmt: skip
    for x, head, align in heads:
        axes.text(x, height - _HEAD + 0.11, head, va="center", ha=align, fontsize=8, color=_FAINT)
    axes.axhline(height - _HEAD, color=_FAINT, linewidth=0.6)


def _row(axes: Axes, check: Check, lines: list[str], top: float, tall: float) -> None:
    middle, colour = top - tall / 2, _COLOURS[check.status]
    weight = "bold" if check.status == FAIL else "normal"
    fill = colour if check.status != INCONCLUSIVE else "white"
    axes.text(_NUMBER, middle, str(check.number), va="center", ha="right", fontsize=8, color=_FAINT)
    axes.text(_NAME, middle, check.name, va="center", fontsize=9, color=_INK, weight=weight, parse_math=False)
    axes.plot(_SHAPE, middle, _SHAPES[check.status], color=colour, markerfacecolor=fill, markersize=6.5)
    axes.text(_STATUS, middle, _WORDS[check.status], va="center", fontsize=9, color=colour, weight=weight)
    found = "" if check.figure is None else _percent(check.figure)
    if check.figure is not None and check.threshold is not None:
        _gauge(axes, check.figure, check.threshold, middle, colour)
        found += f"  ({_percent(check.threshold)})"
    axes.text(_FIGURE, middle, found, va="center", fontsize=8.5, color=_INK, parse_math=False)
    text = "\n".join(lines)
    axes.text(_FINDING, middle, text, va="center", fontsize=7, color=_INK, linespacing=1.25, parse_math=False)


def _gauge(axes: Axes, found: float, limit: float, y: float, colour: str) -> None:
    """A bar from nothing to twice the limit, which is marked; what is more has an arrow's head."""
    ratio = found / limit if limit > 0 else (0.0 if found <= 0 else 3.0)
    end = _GAUGE + _GAUGE_WIDTH * min(max(ratio, 0.0), 2.0) / 2
    axes.plot([_GAUGE, _GAUGE + _GAUGE_WIDTH], [y, y], color="#CCCCCC", linewidth=1.2, solid_capstyle="butt")
    axes.plot([_GAUGE, end], [y, y], color=colour, linewidth=4.5, solid_capstyle="butt")
    if ratio > 2:
        axes.plot(end + 0.02, y, ">", color=colour, markersize=5.5)
    middle = _GAUGE + _GAUGE_WIDTH / 2
    axes.plot([middle, middle], [y - 0.075, y + 0.075], color=_INK, linewidth=1.1)


def _words(check: Check) -> list[str]:
    """The finding on lines, without the share and its limit, which have a column of their own."""
    short = re.sub(r" \((?:[^()]*; )?at most [^()]*\)", "", check.finding)
    return textwrap.wrap(named_norms(short), _LETTERS) or [""]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
