"""One model under many attacks: the curves as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from robustlit.figures.extent import attacked_to, exact_at, known_at, searched
from robustlit.figures.knob import check_style, knob_line
from robustlit.figures.panel import KNOWLEDGE_STYLES, NORMS, UNITS, Line, Look, Panel
from robustlit.results.evaluation import Evaluation
from robustlit.results.stored_verdict import notes_beside
from robustlit.results.table import TOLERANCE
from robustlit.results.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 4  # budgets that a note names one by one
_VISIBLE = 0.002  # the least change of accuracy that a figure shows


def distance_grid(end: float, points: int = 101) -> np.ndarray:
    """Evenly spaced distances from 0 to `end`: curves read at the same points overlay across runs."""
    return np.linspace(0.0, end, points)


def curves_csv(evaluation: Evaluation, distance: str, at: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """Every attack's accuracy against distance as one long table.

    Columns: attack, knowledge, distance, accuracy, low, high, attacked, exact. Where `attacked` is False nobody looked
    that far (see `attacked_to`): the accuracy there is only an upper bound, which a plot should leave out. Where only
    `exact` is False it is an upper bound, too: between budgets, and in a distance that the attack did not search.
    """
    parts = []
    for attack, knowledge in evaluation.runs:
        curve = evaluation.curve(attack, distance=distance, knowledge=knowledge, at=at)
        curve.insert(0, "attack", attack)
        curve.insert(1, "knowledge", knowledge)
        curve["attacked"] = known_at(evaluation, attack, distance=distance, knowledge=knowledge, at=at)
        curve["exact"] = exact_at(evaluation, attack, distance=distance, knowledge=knowledge, at=at)
        parts.append(curve)
    return pd.concat(parts, ignore_index=True)


def curves_figure(
    evaluation: Evaluation,
    distance: str = "l2",
    *,
    style: str = "curve",
    name: str = "",
    verdict: Verdict | None = None,
) -> Figure:
    """One model under many attacks: accuracy against distance, a line an attack, with Wilson 95 % bands.

    A line ends, with a dot, where its attack stopped looking (see `attacked_to`) or had broken everything; that of a
    minimal attack goes on as a thin one, as it found nothing farther away. It is thin, too, where it is but an upper
    bound: between budgets, which have dots, and all of it in a distance that its attack did not search. Where attacks
    ran with several kinds of knowledge, those of one attack share its colour: adaptive is drawn through, grey-box
    dashed, black-box dotted.

    Args:
        distance: l0, l1, l2 or linf.
        style: "curve", or "report" for the 2019 report's axes (see `knob_settings`).
        name: of the model, for the title.
        verdict: on the evaluation, for a line below the title.

    Raises:
        EvaluationError: an unknown style or distance, a verdict on another table.
    """
    report = check_style(style) == "report"
    several = len({knowledge for _, knowledge in evaluation.runs}) > 1
    lines: list[Line] = []
    bare: list[str] = []
    for attack, knowledge in evaluation.runs:
        look = Look.number(evaluation.attacks.index(attack), KNOWLEDGE_STYLES[knowledge] if several else None)
        label = evaluation.label(attack, knowledge)
        line = (knob_line if report else curve_line)(evaluation, attack, label, distance, knowledge, look)
        if line is None:
            bare.append(label)
        else:
            lines.append(line)
    title = f"{name}: accuracy" if name else "Accuracy"
    notes = budget_notes(evaluation, evaluation.runs, report)
    notes += [] if report else bound_notes([(evaluation, *ran) for ran in evaluation.runs], distance)
    notes += notes_beside(evaluation, verdict)
    if bare:
        notes.append(f"No witness found by {', '.join(bare)}.")
    return Panel(
        distance,
        f"{title} against {NORMS[distance]} distance, {counted(evaluation)}, "
        f"clean {100 * evaluation.clean_accuracy:.1f} %",
        lines,
        notes,
        xlabel=f"mean {UNITS[distance].replace(' (', ' of the witnesses (')}" if report else None,
        verdict=verdict,
    ).figure()


def counted(evaluation: Evaluation) -> str:
    """On how many examples, and whether on fewer than meant."""
    return f"n = {evaluation.n}" + (f" ({evaluation.caveat})" if evaluation.caveat else "")


def budget_notes(evaluation: Evaluation, runs: Sequence[tuple[str, str]], report: bool = False) -> list[str]:
    """The budgets that attacks ran at, in words; nothing where all were minimal."""
    ends: dict[str, list[str]] = {}
    for attack, knowledge in runs:
        if budgets := evaluation.budgets(attack, knowledge):
            norm, each = NORMS[evaluation.norm_of(attack)], ", ".join(f"{b:g}" for b in budgets)
            few = report or len(budgets) <= _FEW
            shown = f"{norm} {each}" if few else f"{len(budgets)} of {norm} up to {budgets[-1]:g}"
            of_budget = ends.setdefault(shown, [])
            if attack not in of_budget:
                of_budget.append(attack)
    start = "A marker each at " if report else "Budgets attacked: "
    return [f"{start}{budget}: {', '.join(names)}." for budget, names in ends.items()]


def bound_notes(
    drawn: Sequence[tuple[Evaluation, str | None, str]], distance: str, names: Sequence[str] = ()
) -> list[str]:
    """Where lines over a distance are but upper bounds, in words.

    Args:
        drawn: of each line its evaluation, attack (None for the worst case) and knowledge.
        distance: l0, l1, l2 or linf.
        names: of the lines, where they are not attacks.
    """
    axis, notes = NORMS[distance], []
    searches = [searched(e, attack, distance=distance, knowledge=known) for e, attack, known in drawn]
    if any(search.budgets and not search.nearest for search in searches):
        notes.append("Between budgets a line is an upper bound.")
    bare = [k for k, search in enumerate(searches) if search.nowhere]
    by_norm: dict[str, list[str]] = {}
    for evaluation, attack, _ in (drawn[k] for k in bare):
        if attack is not None:
            by_norm.setdefault(NORMS[evaluation.norm_of(attack)], []).append(attack)
    for norm, attacks in by_norm.items():
        each = list(dict.fromkeys(attacks))
        lines = "line is an upper bound" if len(attacks) == 1 else "lines are upper bounds"
        notes.append(f"{', '.join(each)} searched {norm}: over {axis} {'its' if len(each) == 1 else 'their'} {lines}.")
    if over := [names[k] for k in bare if drawn[k][1] is None]:
        lines = "its line is an upper bound" if len(over) == 1 else "their lines are upper bounds"
        notes.append(f"No attack searched {axis} ({', '.join(over)}): {lines}.")
    return notes


def curve_line(
    evaluation: Evaluation, attack: str | None, name: str, distance: str, knowledge: str, look: Look
) -> Line:
    """The curve of an attack, or of the worst case, as far as it is known, with where it is exact."""
    curve = evaluation.curve(attack, distance=distance, knowledge=knowledge)
    end = attacked_to(evaluation, attack, distance=distance, knowledge=knowledge)
    search = searched(evaluation, attack, distance=distance, knowledge=knowledge)
    at = (
        evaluation.curve(attack, distance=distance, knowledge=knowledge, at=search.budgets)
        if search.budgets
        else curve[:0]
    )
    values, stops = (found[["distance", "accuracy", "low", "high"]].to_numpy() for found in (curve, at))
    # Steps too small to be seen would only swell the file.
    first = np.unique(np.round(values[:, 1] / _VISIBLE), return_index=True)[1]
    values = values[np.unique([*first, 0, len(values) - 1])]
    # Witnesses of other attacks lie past the end of a worst case: there it would only bound from above.
    values = values[values[:, 0] <= end + TOLERANCE]
    last = values[-1]
    if np.isfinite(end) and end > last[0] and last[1] > 0:  # attacked farther than anything broke
        values = np.vstack([values, [end, *last[1:]]])
    stops = stops[stops[:, 0] <= values[-1, 0] + TOLERANCE]  # a line that came down to nothing has ended
    return Line.of(name, values, look, goes_on=not np.isfinite(end), stops=None if search.nearest else stops)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Writes a figure as `path`.png and `path`.svg; returns both."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what was laid out once need not be for each file
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for file in written:
        figure.savefig(file)
    return written
