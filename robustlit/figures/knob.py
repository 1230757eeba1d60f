"""The 2019 report's own axes: mean distance of the witnesses at each setting, and the accuracy there."""

from __future__ import annotations

import pandas as pd

from robustlit.figures.panel import Line, Look
from robustlit.results.evaluation import Evaluation, EvaluationError
from robustlit.results.intervals import Accuracy

STYLES_OF_FIGURES = ("curve", "report")


def check_style(style: str) -> str:
    """`style` if it is one.

    Raises:
        EvaluationError: it is none.
    """
    if style not in STYLES_OF_FIGURES:
        raise EvaluationError(
            f"there is no figure style {style!r}; there are 'curve' (share not yet broken at each distance) and "
            "'report' (mean distance of the witnesses at each setting)"
        )
    return style


def knob_settings(
    evaluation: Evaluation, attack: str, *, distance: str = "l2", knowledge: str = "adaptive"
) -> pd.DataFrame:
    """An attack at each of its settings: how far its witnesses are on average, and the accuracy left.

    The mean is over the examples classified right and broken at that setting, of the nearest witness found up to it:
    one found at a smaller budget counts at the larger ones, so that means are smaller than in the report, which moved
    every image by the whole budget. A budget of 0 is the clean images. A minimal attack has one setting, without a
    budget.

    Args:
        attack: one attack.
        distance: l0, l1, l2 or linf.
        knowledge: greybox, adaptive or blackbox.

    Returns:
        Columns `eps` (NaN for a minimal attack), `distance`, `accuracy`, `low`, `high`, a row a setting that has
        witnesses, by budget.

    Raises:
        EvaluationError: an attack or knowledge that was not run, or no such distance.
    """
    evaluation.least_distances(attack, distance=distance, knowledge=knowledge)  # says so
    budgets = evaluation.budgets(attack, knowledge)
    table = evaluation.table
    rows = table[(table["attack"] == attack) & (table["knowledge"] == knowledge)]
    clean = evaluation.clean_accuracy
    found: list[tuple[float, float, float, float, float]] = []
    if budgets:
        found.append((0.0, 0.0, float(clean), *clean.interval))
    for eps in budgets or [float("nan")]:
        upto = rows[rows["success"] & (rows["eps"] <= eps)] if budgets else rows[rows["success"]]
        nearest = upto[upto["clean"]].groupby("index")[distance].min()
        if len(nearest):
            left = Accuracy(evaluation.n - upto["index"].nunique(), evaluation.n)
            found.append((eps, float(nearest.mean()), float(left), *left.interval))
    return pd.DataFrame(found, columns=["eps", "distance", "accuracy", "low", "high"])


def knob_line(evaluation: Evaluation, attack: str, name: str, distance: str, knowledge: str, look: Look) -> Line | None:
    """The settings as a line with a marker at each; None where there is no witness at any."""
    settings = knob_settings(evaluation, attack, distance=distance, knowledge=knowledge)
    if (settings["eps"] == 0).all():
        return None
    return Line.of(name, settings[["distance", "accuracy", "low", "high"]].to_numpy(), look, points=True)
