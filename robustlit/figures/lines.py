"""From evaluations to the lines of a figure, and the notes that the lines need."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from robustlit.checks import TOLERANCE, budget_text
from robustlit.figures.extent import attacked_to, searched
from robustlit.figures.panel import NORMS, Line, Look, Panel
from robustlit.results.evaluation import Evaluation, EvaluationError
from robustlit.results.intervals import Accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 4  # budgets that a note names one by one
_VISIBLE = 0.002  # the least change of accuracy that a figure shows


@dataclass(frozen=True)
class Source:
    """What a line is read from: one attack, or the worst case (None), with its knowledge."""

    name: str
    evaluation: Evaluation
    attack: str | None
    knowledge: str
    look: Look
    mark: str = ""  # behind the name beside the line


def draw_lines(panel: Panel, sources: Sequence[Source]) -> Figure:
    """Draw a panel with a line for each source, and add the notes that the lines need."""
    return panel.figure(collect_lines(panel, sources))


def collect_lines(panel: Panel, sources: Sequence[Source]) -> list[Line]:
    """Return the line of each source that has one, and add the notes that the lines need to the panel."""
    report = check_style(panel.style) == "report"
    lines: list[Line] = []
    empty: list[str] = []
    caveats: list[str] = []
    for source in sources:
        with as_notes(caveats):
            try:
                line = report_line(source, panel.distance) if report else curve_line(source, panel.distance)
            except EvaluationError as error:
                raise EvaluationError(f"{source.name}: {error}") from error
        if line is None:
            empty.append(source.name)
        else:
            lines.append(line)
    panel.notes += budget_notes(sources, "A marker each at " if report else "Budgets attacked: ", _FEW + 99 * report)
    panel.notes += [] if report else bound_notes(sources, panel.distance)
    panel.notes += caveats
    if empty:
        panel.notes.append(f"No adversarial example found: {', '.join(empty)}.")
    return lines


@contextmanager
def as_notes(notes: list[str]) -> Iterator[None]:
    """Add the warnings that come up inside to `notes`, as sentences, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(f"{str(warning.message)[0].upper()}{str(warning.message)[1:]}." for warning in caught):
        notes.append(text)


def curve_line(source: Source, distance: str) -> Line:
    """Return the curve of a source as far as it is known, with where it is exact."""
    evaluation, attack, knowledge = source.evaluation, source.attack, source.knowledge
    values = evaluation.curve(attack, distance=distance, knowledge=knowledge).to_numpy()
    end = attacked_to(evaluation, attack, distance=distance, knowledge=knowledge)
    search = searched(evaluation, attack, distance=distance, knowledge=knowledge)
    # Steps too small to be seen would only enlarge the file.
    first = np.unique(np.round(values[:, 1] / _VISIBLE), return_index=True)[1]
    values = values[np.unique([*first, 0, len(values) - 1])]
    # Past the end of a worst case, adversarial examples of other attacks would only give an upper bound.
    values = values[values[:, 0] <= end + TOLERANCE]
    last = values[-1]
    if np.isfinite(end) and end > last[0] and last[1] > 0:  # attacked farther than the last example that broke
        values = np.vstack([values, [end, *last[1:]]])
    stops = values[:0]
    if search.budgets:
        stops = evaluation.curve(attack, distance=distance, knowledge=knowledge, at=search.budgets).to_numpy()
        stops = stops[stops[:, 0] <= values[-1, 0] + TOLERANCE]  # a line that reached 0 has ended
    name = f"{source.name}{source.mark}"
    return Line(name, values, source.look, not np.isfinite(end), stops=None if search.nearest else stops)


def check_style(style: str) -> str:
    """Return `style` if there is such a style of figures, else raise an EvaluationError."""
    if style not in ("curve", "report"):
        raise EvaluationError(
            f"there is no figure style {style!r}; there are 'curve' (share not yet broken at each distance) and "
            "'report' (mean distance of the adversarial examples at each setting)"
        )
    return style


def knob_settings(
    evaluation: Evaluation, attack: str, *, distance: str = "l2", knowledge: str = "adaptive"
) -> pd.DataFrame:
    """Return an attack's mean distance and the remaining accuracy at each of its settings.

    The mean is over the correctly classified examples that are broken at that setting, of the nearest adversarial
    example found up to it; means are smaller than in the report, which moved every image by the whole budget. A budget
    of 0 is the clean images. A minimal attack has one setting, without a budget. Arguments and errors: `attacked_to`.

    Returns:
        Columns `eps` (NaN for a minimal attack), `distance`, `accuracy`, `low`, `high`, ordered by budget, with a row
        for each setting that broke an example.
    """
    evaluation.least_distances(attack, distance=distance, knowledge=knowledge)  # checks the arguments
    budgets, table, clean = evaluation.budgets(attack, knowledge), evaluation.table, evaluation.clean_accuracy
    broken = table[(table["attack"] == attack) & (table["knowledge"] == knowledge) & table["success"]]
    found = [(0.0, 0.0, float(clean), *clean.interval)] if budgets else []
    for eps in budgets or [float("nan")]:
        upto = broken[broken["eps"] <= eps] if budgets else broken
        nearest = upto[upto["clean"]].groupby("index")[distance].min()
        if len(nearest):
            left = Accuracy(evaluation.n - upto["index"].nunique(), evaluation.n)
            found.append((eps, float(nearest.mean()), float(left), *left.interval))
    return pd.DataFrame(found, columns=["eps", "distance", "accuracy", "low", "high"])


def report_line(source: Source, distance: str) -> Line | None:
    """Return an attack's settings as a line with a marker at each; None if it broke no example."""
    if source.attack is None:
        raise EvaluationError("style 'report' draws an attack's settings, and a worst case has none: name an attack")
    settings = knob_settings(source.evaluation, source.attack, distance=distance, knowledge=source.knowledge)
    if (settings["eps"] == 0).all():
        return None
    values = settings[["distance", "accuracy", "low", "high"]].to_numpy()
    return Line(f"{source.name}{source.mark}", values, source.look, points=True)


def budget_notes(sources: Sequence[Source], start: str, few: int) -> list[str]:
    """Return the budgets that attacks ran at as sentences; nothing if all are minimal."""
    attacks: dict[str, dict[str, None]] = {}
    for source in sources:
        for attack in source.evaluation.named(source.attack, source.knowledge):
            if budgets := source.evaluation.budgets(attack, source.knowledge):
                norm, each = NORMS[source.evaluation.norm_of(attack)], ", ".join(map(budget_text, budgets))
                shown = (
                    f"{norm} {each}"
                    if len(budgets) <= few
                    else f"{len(budgets)} of {norm} up to {budget_text(budgets[-1])}"
                )
                attacks.setdefault(shown, {})[attack] = None
    return [f"{start}{budgets}: {', '.join(names)}." for budgets, names in attacks.items()]


def bound_notes(sources: Sequence[Source], distance: str) -> list[str]:
    """Return sentences that name the lines, or parts of lines, that are only upper bounds."""
    searches = [searched(s.evaluation, s.attack, distance=distance, knowledge=s.knowledge) for s in sources]
    notes, worst = [], []
    if any(search.budgets and not search.nearest for search in searches):
        notes.append("Between budgets a line is an upper bound.")
    by_norm: dict[str, list[str]] = {}
    for source, search in zip(sources, searches, strict=True):
        if search.nowhere and source.attack is None:
            worst.append(source.name)
        elif search.nowhere and source.attack is not None:
            by_norm.setdefault(NORMS[source.evaluation.norm_of(source.attack)], []).append(source.attack)
    for norm, attacks in by_norm.items():
        names = dict.fromkeys(attacks)
        bounds = f"{'its' if len(names) == 1 else 'their'} {_bounds(attacks)}"
        notes.append(f"{', '.join(names)} searched {norm}: over {NORMS[distance]} {bounds}.")
    if worst:
        its = "its" if len(worst) == 1 else "their"
        notes.append(f"No attack searched {NORMS[distance]} ({', '.join(worst)}): {its} {_bounds(worst)}.")
    return notes


def _bounds(lines: Sequence[str]) -> str:
    return "line is an upper bound" if len(lines) == 1 else "lines are upper bounds"
