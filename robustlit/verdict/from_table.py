"""Checks that the table of an evaluation answers by itself."""

from __future__ import annotations

import numpy as np

from robustlit.results.evaluation import Evaluation
from robustlit.results.table import DISTANCES, TOLERANCE
from robustlit.results.verdict import Check, judged_share, undecided

_BENCH = "AttackBench 2024, arXiv:2404.19460"
_VALID = "witnesses are valid"


def valid(evaluation: Evaluation) -> Check:
    """1: every witness lies within its budget."""
    table = evaluation.table
    won = table[table["success"] & table["clean"]]
    if not len(won):
        return undecided(1, _VALID, "no attack found a witness: look whether the attacks run as they should", _BENCH)
    wrong = np.zeros(len(won), dtype=bool)
    for norm in won["norm"].unique():
        rows = (won["norm"] == norm).to_numpy()
        wrong[rows] = won[str(norm)][rows] > won["eps"][rows].fillna(np.inf) + TOLERANCE
    wrong |= ~np.isfinite(won[list(DISTANCES)]).all(axis=1).to_numpy()
    names = ", ".join(won["attack"][wrong].unique())
    return judged_share(
        1, _VALID, int(wrong.sum()), len(won), 0.0, _BENCH, found="witnesses beyond their budget:",
        advice=f"{names} leaves its ball: project onto it before the point is returned",
    )  # fmt: skip


def one_step_in_table(evaluation: Evaluation, norm: str, eps: float) -> tuple[int, int] | None:
    """How many examples FGSM broke that no iterative attack did, of how many; None without either at that budget."""
    names = [n for n in evaluation.rests_on(norm=norm, eps=eps) if n != "fgsm"]
    iterative = [n for n in names if evaluation.budgets(n)]
    if "fgsm" not in evaluation.rests_on(norm=norm, eps=eps) or not iterative:
        return None
    fgsm = evaluation.least_distances("fgsm", distance=norm) <= eps + TOLERANCE
    others = np.min([evaluation.least_distances(n, distance=norm) for n in names], axis=0) <= eps + TOLERANCE
    return int((fgsm & ~others).sum()), evaluation.n


def broken_only_by(evaluation: Evaluation, knowledge: str, norm: str, eps: float) -> tuple[int, int] | None:
    """How many examples attacks of less knowledge broke that adaptive ones did not; None where none of them ran."""
    if knowledge not in {known for _, known in evaluation.runs}:
        return None
    if not evaluation.rests_on(norm=norm, eps=eps, knowledge=knowledge):
        return None
    knowing = evaluation.least_distances(None, distance=norm) > eps + TOLERANCE
    less = evaluation.least_distances(None, distance=norm, knowledge=knowledge) <= eps + TOLERANCE
    return int((knowing & less).sum()), evaluation.n


def gradient_free_in_table(evaluation: Evaluation, norm: str, eps: float) -> tuple[int, int] | None:
    """How many examples Square broke that nothing else did, of how many; None where it did not run."""
    names = evaluation.rests_on(norm=norm, eps=eps)
    if "square" not in names or len(names) < 2:
        return None
    square = evaluation.least_distances("square", distance=norm) <= eps + TOLERANCE
    rest = [evaluation.least_distances(n, distance=norm) for n in names if n != "square"]
    others = np.min(rest, axis=0) <= eps + TOLERANCE
    return int((square & ~others).sum()), evaluation.n
