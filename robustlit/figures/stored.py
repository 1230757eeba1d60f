"""A figure as numbers in a JSON file, from which it is drawn again: what `robustlit report` leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from robustlit.checks import budget_text
from robustlit.figures.extent import exact_at, known_at
from robustlit.figures.lines import Source, collect_lines
from robustlit.figures.panel import NORMS, WILSON, Line, Look, Panel
from robustlit.files import write_file
from robustlit.results.evaluation import Evaluation, EvaluationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 1
_DIGITS = 4  # of distances and accuracies: a hundredth of a per cent
_BETWEEN_SEEDS = 10**9  # numbers of the examples of two runs never meet


@dataclass(frozen=True)
class Wanted:
    """One line of a figure: an attack on one net, or on nets that differ in their seed alone.

    Args:
        name: Beside the line.
        evaluations: On the same examples; of several the line is the mean, its band from the least to the largest.
        attack: None takes the worst case.
        knowledge: "greybox", "adaptive" or "blackbox".
    """

    name: str
    evaluations: Sequence[Evaluation]
    attack: str | None = None
    knowledge: str = "adaptive"


def figure_record(
    title: str, distance: str, at: Sequence[float], wanted: Sequence[Wanted], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a figure shows as plain values: everything that `draw_record` and `table_of` need.

    Args:
        title: Its first words.
        distance: "l2", "linf", "l1" or "l0".
        at: The distances of its table, in pixel units.
        wanted: Its lines.
        more: Further entries, such as the claim that the figure tests and the commands that it rests on.
    """
    panel = Panel(distance, title, "")
    sources = [
        Source(line.name, _pooled(line.evaluations), line.attack, line.knowledge, _look(number, line.knowledge))
        for number, line in enumerate(wanted)
    ]
    drawn = {line.name: line for line in collect_lines(panel, sources)}
    lines = [
        _line_record(line, source.evaluation, drawn.get(line.name), distance, at)
        for line, source in zip(wanted, sources, strict=True)
    ]
    return {"version": VERSION, **more, "title": title, "distance": distance, "at": list(at), "lines": lines,
            "notes": panel.notes}  # fmt: skip


def save_record(record: Mapping[str, Any], file: Path) -> Path:
    """Write a record as JSON, a line of the figure a row."""
    parts = {key: value for key, value in record.items() if key != "lines"}
    rows = ",\n  ".join(json.dumps(line, allow_nan=False) for line in record["lines"])
    text = json.dumps(parts, indent=1, allow_nan=False, ensure_ascii=False)
    return write_file(file, f'{text[:-2]},\n "lines": [\n  {rows}\n ]\n}}\n')


def load_record(file: Path) -> dict[str, Any]:
    """Read a record; an EvaluationError for a file that is none, or of a newer version."""
    try:
        record = json.loads(file.read_text())
        newer = record["version"] > VERSION
        _ = record["title"], record["distance"], record["at"], record["notes"], record["lines"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{file} is no figure that `robustlit report` wrote ({type(error).__name__})") from error
    if newer:
        raise EvaluationError(f"{file} has version {record['version']}, this program reads {VERSION}: update robustlit")
    return dict(record)


def draw_record(record: Mapping[str, Any]) -> Figure:
    """Draw a figure from its record alone: no table is read and no model loaded."""
    lines = [
        Line(
            line["name"], np.asarray(line["values"], dtype=float), Look(*line["look"]), line["goes_on"],
            stops=None if line["stops"] is None else np.asarray(line["stops"], dtype=float).reshape(-1, 4),
        )
        for line in record["lines"]
        if line["values"]
    ]  # fmt: skip
    counts, intervals = _counts(record["lines"]), _intervals({line["runs"] for line in record["lines"]})
    panel = Panel(record["distance"], record["title"], counts, notes=list(record["notes"]), intervals=intervals)
    return panel.figure(lines)


def table_of(record: Mapping[str, Any]) -> list[str]:
    """Return the figure's table in Markdown: accuracies in per cent with their intervals, ≤ for an upper bound.

    Beside them the median distance of the correctly classified images (none: most are robust), the distance from which
    on none is robust, forward and backward passes an image and, where they were measured, the attack's seconds on
    all images together.
    """
    norm = NORMS[record["distance"]]
    distances = (f"{norm} {budget_text(d)}" for d in record["at"])
    head = ["accuracy, %", "n", "clean", *distances, "median", "0 from", "passes"]
    rows = [_cells(line) for line in record["lines"]]
    if any(line.get("seconds") is not None for line in record["lines"]):
        head.append("s")
        for cells, line in zip(rows, record["lines"], strict=True):
            cells.append("" if line.get("seconds") is None else f"{line['seconds']:.1f}")
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(line: Mapping[str, Any]) -> list[str]:
    cells = []
    for entry in line["at"]:
        if entry is None:
            cells.append("not attacked")
            continue
        accuracy, low, high, exact = entry
        cells.append(f"{'' if exact else '≤ '}{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    runs = f" x {line['runs']}" if line["runs"] > 1 else ""
    ends = [
        "none" if line["median"] is None else f"{line['median']:.2f}",
        "never" if line["zero_from"] is None else f"{line['zero_from']:.2f}",
        f"{line['passes']:.0f}",
    ]
    return [line["name"], f"{line['n']}{runs}", f"{100 * line['clean']:.1f}", *cells, *ends]


def _counts(lines: Sequence[Mapping[str, Any]]) -> str:
    numbers = sorted({line["n"] for line in lines}, reverse=True)
    if len(numbers) == 1:
        nets = {line["runs"] for line in lines}
        return f"n = {numbers[0]}" + (f" of each of {nets.pop()} nets" if len(nets) == 1 and nets != {1} else "")
    each = "; ".join(f"{n}: {', '.join(line['name'] for line in lines if line['n'] == n)}" for n in numbers[1:])
    return f"n = {numbers[0]} ({each})"


def _intervals(runs: set[int]) -> str:
    """Return what the bands are, of lines that are each the mean of so many nets."""
    several = ", ".join(str(count) for count in sorted(runs - {1}))
    between = f"lowest and highest of {several} nets with different seeds"
    if not several:
        return WILSON
    return f"{WILSON}, of several nets {between}" if 1 in runs else between


def _look(number: int, knowledge: str) -> Look:
    return Look.number(number, "--" if knowledge == "greybox" else None)


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return one evaluation of the examples of all: its accuracies are the means, as each has the same examples."""
    if len(evaluations) == 1:
        return evaluations[0]
    if len({evaluation.n for evaluation in evaluations}) > 1:
        raise EvaluationError("the runs of one line were attacked on different numbers of images; evaluate them again")
    tables = [e.table.assign(index=e.table["index"] + k * _BETWEEN_SEEDS) for k, e in enumerate(evaluations)]
    return Evaluation(pd.concat(tables, ignore_index=True), evaluations[0].meta)


def _line_record(
    wanted: Wanted, pooled: Evaluation, drawn: Line | None, distance: str, at: Sequence[float]
) -> dict[str, Any]:
    attack, known = wanted.attack, wanted.knowledge
    spread = [] if len(wanted.evaluations) == 1 else list(wanted.evaluations)

    def ranged(values: np.ndarray) -> list[list[float]]:
        """Return rows (distance, accuracy, low, high); of several runs the ends are the least and the largest."""
        values = np.array(values, dtype=float)
        if spread and len(values):
            each = [e.curve(attack, distance=distance, knowledge=known, at=values[:, 0])["accuracy"] for e in spread]
            values[:, 2], values[:, 3] = np.min(each, axis=0), np.max(each, axis=0)
        return [[round(float(value), _DIGITS) for value in row] for row in values]

    names = pooled.named(attack, known)
    spent = [e.seconds(e.label(name, known)) for e in wanted.evaluations for name in names]
    curve = pooled.curve(attack, distance=distance, knowledge=known, at=at).to_numpy()
    there = known_at(pooled, attack, distance=distance, knowledge=known, at=at)
    exact = exact_at(pooled, attack, distance=distance, knowledge=known, at=at)
    reach = pooled.reach(attack, distance=distance, knowledge=known)
    median = pooled.median_distance(attack, distance=distance, knowledge=known)
    return {
        "name": wanted.name, "attack": attack, "knowledge": known, "n": wanted.evaluations[0].n,
        "runs": len(wanted.evaluations), "clean": round(float(pooled.clean_accuracy), _DIGITS),
        "at": [[*row[1:], bool(e)] if k else None for row, k, e in zip(ranged(curve), there, exact, strict=True)],
        "passes": round(sum(pooled.passes(name, knowledge=known) for name in names), 1),
        "seconds": None if None in spent else round(sum(filter(None, spent)), 1),
        "median": round(median, _DIGITS) if np.isfinite(median) else None,
        "zero_from": round(float(reach.max()), _DIGITS) if np.isfinite(reach.max()) else None,
        "look": list(astuple(Look.number(0) if drawn is None else drawn.look)),
        "goes_on": bool(drawn and drawn.goes_on),
        "values": [] if drawn is None else ranged(drawn.values),
        "stops": None if drawn is None or drawn.stops is None else ranged(drawn.stops),
    }  # fmt: skip
