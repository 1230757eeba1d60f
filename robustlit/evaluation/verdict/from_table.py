"""Checks that the table of an evaluation answers by itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustlit.evaluation.results import DISTANCES, Evaluation
from robustlit.evaluation.verdict.check import Check, judged_share, judged_value, undecided
from robustlit.threat import TOLERANCE

_CARLINI = "Carlini et al. 2019, arXiv:1902.06705"
_PLAUSIBLE = 0.1  # accuracy that is still no sizeable one
_MANY = 2000  # images whose distances to each other are looked at


def valid(evaluation: Evaluation) -> Check:
    """1: every witness lies within its budget."""
    table = evaluation.table
    won = table[table["success"] & table["clean"]]
    wrong = 0
    for norm, rows in won.groupby("norm"):
        within = rows[str(norm)] <= rows["eps"].fillna(np.inf) + TOLERANCE
        finite = np.isfinite(rows[list(DISTANCES)]).all(axis=1)
        wrong += int((~(within & finite)).sum())
    return judged_share(
        1, "witnesses are valid", wrong, max(1, len(won)), 0.0, "AttackBench 2024, arXiv:2404.19460",
        found="witnesses beyond their budget:", advice="an attack leaves its ball; project before returning",
    )  # fmt: skip


def monotone(evaluation: Evaluation) -> Check:
    """4: accuracy does not rise with eps."""
    name, worst, at = "accuracy falls with eps", 0.0, ""
    for attack, knowledge in evaluation.runs:
        rows = evaluation.table[(evaluation.table["attack"] == attack) & (evaluation.table["knowledge"] == knowledge)]
        standing = 1 - rows.dropna(subset="eps").groupby("eps")["success"].mean()
        rises = standing.sort_index().diff().dropna()
        if len(rises) and rises.max() > worst:
            worst, at = float(rises.max()), f" ({attack} at {rises.idxmax():g})"
    band = 1.96 * (0.25 / evaluation.n) ** 0.5
    advice = f"the attack loses at larger budgets what it found at smaller ones{at}; give it more steps"
    return judged_value(4, name, worst, band, _CARLINI, found="the largest rise is", advice=advice)


def plausible(evaluation: Evaluation, x: Tensor, y: Tensor) -> Check:
    """5: no robustness where images of two classes are nearer to each other than to their adversarials.

    Args:
        evaluation: with a minimal attack in L2.
        x, y: its images (N, ...) and classes (N,).
    """
    name = "no robustness beyond the distance of classes"
    minimal = [
        attack
        for attack, knowledge in evaluation.runs
        if knowledge == "adaptive" and evaluation.norm_of(attack) == "l2" and not evaluation.budgets(attack, knowledge)
    ]
    if not minimal:
        return undecided(5, name, "no attack looked for the nearest adversarial in L2; add NearestL2()", _CARLINI)
    half = other_class_distance(x[:_MANY], y[:_MANY]) / 2
    if not np.isfinite(half):
        return undecided(5, name, "all images are of one class", _CARLINI)
    reach = evaluation.least_distances(None, distance="l2")
    standing = int((reach > half + TOLERANCE).sum())
    return judged_share(
        5, name, standing, evaluation.n, _PLAUSIBLE, _CARLINI,
        found=f"standing at L2 {half:.3g}, half the median distance to another class:",
        advice="hardly anything can be robust there; attack in L2 harder (NearestL2, more steps)",
    )  # fmt: skip


def other_class_distance(x: Tensor, y: Tensor) -> float:
    """Median over images (N, ...) of the L2 distance to the nearest image of another class; inf for one class."""
    flat = x.flatten(1).float()
    nearest = []
    for part, label in zip(flat.split(200), y.split(200), strict=True):
        far = torch.cdist(part, flat)
        nearest.append(far.masked_fill(label.unsqueeze(1) == y, float("inf")).amin(1))
    return float(torch.cat(nearest).median())


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
