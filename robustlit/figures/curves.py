"""One model under many attacks: the curves as a table and as a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from robustlit.figures.extent import exact_at, known_at
from robustlit.figures.lines import Source, draw_lines
from robustlit.figures.names import names_in_full, short_names
from robustlit.figures.notebook import quiet_about_letters
from robustlit.figures.panel import KNOWLEDGE_STYLES, Look, Panel
from robustlit.files import write_file
from robustlit.results.evaluation import Evaluation
from robustlit.results.stored_verdict import notes_beside
from robustlit.results.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def distance_grid(end: float, points: int = 101) -> np.ndarray:
    """Return evenly spaced distances from 0 to `end`: curves read at the same points overlay across runs."""
    return np.linspace(0.0, end, points)


def curves_csv(evaluation: Evaluation, distance: str, at: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """Return every attack's accuracy against distance as one long table.

    Columns: attack, knowledge, distance, accuracy, low, high, attacked, exact. Where `attacked` is False no attack
    searched that far (see `attacked_to`): the accuracy is only an upper bound, which a plot should leave out. Where
    only `exact` is False it is an upper bound too: between budgets, and in a distance that the attack did not search.
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
    evaluation: Evaluation, distance: str = "l2", *, style: str = "curve", name: str = "",
    verdict: Verdict | None = None,
) -> Figure:  # fmt: skip
    """Draw one model under many attacks: accuracy against distance, a line an attack, with Wilson 95 % bands.

    A line ends, with a dot, where its attack stopped searching (see `attacked_to`) or had broken everything; that of a
    minimal attack continues as a thin one, as it found nothing farther away. A line is also thin where it is only an
    upper bound: between budgets, which have dots, and everywhere in a distance that its attack did not search. The
    lines of one attack share its colour: adaptive solid, grey-box dashed, black-box dotted.

    Args:
        distance: "l0", "l1", "l2" or "linf".
        style: "curve", or "report" for the axes of the 2019 report (see `knob_settings`).
        name: Name of the model, for the title.
        verdict: The verdict on the evaluation, for a line below the title.

    Raises:
        EvaluationError: An unknown style or distance, or a verdict on another table.
    """
    short = short_names(evaluation.label(*run) for run in evaluation.runs)
    several = len({knowledge for _, knowledge in evaluation.runs}) > 1
    sources = []
    for attack, known in evaluation.runs:
        look = Look.number(evaluation.attacks.index(attack), KNOWLEDGE_STYLES[known] if several else None)
        sources.append(Source(short[evaluation.label(attack, known)], evaluation, attack, known, look))
    subject = f"{name}: accuracy" if name else "Accuracy"
    notes = [*notes_beside(evaluation, verdict), *names_in_full(short)]
    return draw_lines(Panel(distance, subject, counts(evaluation), style, notes, verdict), sources)


def counts(evaluation: Evaluation) -> str:
    """Return the number of examples, whether it is smaller than meant, and the clean accuracy."""
    caveat = f" ({evaluation.caveat})" if evaluation.caveat else ""
    return f"n = {evaluation.n}{caveat}, clean {100 * evaluation.clean_accuracy:.1f} %"


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as `path`.png and `path`.svg; return both."""
    with quiet_about_letters():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is computed once, not for each file
    return [write_figure(figure, path.with_name(f"{path.name}.{kind}")) for kind in ("png", "svg")]


def write_figure(figure: Figure, file: Path) -> Path:
    """Write a figure into a file of the kind that its name ends in."""
    drawn = io.BytesIO()
    with quiet_about_letters():
        figure.savefig(drawn, format=file.suffix[1:])
    return write_file(file, drawn.getvalue())
