"""Checks 4 and 5: what accuracy must do as the budget grows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustlit.attacks import DDN, PGD, NearestL2
from robustlit.results.evaluation import Evaluation
from robustlit.results.table import TOLERANCE
from robustlit.results.verdict import Check, judged_share, judged_value, undecided
from robustlit.verdict.probe import Probe

_CARLINI = "Carlini et al. 2019, arXiv:1902.06705"
_FALLS, _PLAUSIBLE = "accuracy falls with eps", "no robustness beyond the distance of classes"
_RISE = 0.005  # of examples, by a single look at half the budget
_STANDING = 0.1  # accuracy that is still no sizeable one
_MANY = 2000  # images whose distances to each other are looked at


def several_budgets(evaluation: Evaluation) -> bool:
    """Whether an attack ran at more than one budget, so that the table tells check 4."""
    return any(len(evaluation.budgets(attack, known)) > 1 for attack, known in evaluation.runs)


def monotone(evaluation: Evaluation) -> Check:
    """4, from the table: accuracy does not rise with eps."""
    worst, at = 0.0, ""
    for attack, knowledge in evaluation.runs:
        rows = evaluation.table[(evaluation.table["attack"] == attack) & (evaluation.table["knowledge"] == knowledge)]
        standing = 1 - rows.dropna(subset="eps").groupby("eps")["success"].mean()
        rises = standing.sort_index().diff().dropna()
        if len(rises) and rises.max() > worst:
            worst, at = float(rises.max()), f" ({attack} at {rises.idxmax():g})"
    band = 1.96 * (0.25 / evaluation.n) ** 0.5
    advice = f"the attack loses at larger budgets what it found at smaller ones{at}: give it more, smaller steps"
    return judged_value(4, _FALLS, worst, band, _CARLINI, found="the largest rise is", advice=advice)


def smaller_budget(probe: Probe) -> Check:
    """4, where each attack ran at one budget: PGD with half of it breaks nothing that stood."""
    half = probe.eps / 2
    return judged_share(
        4, _FALLS, probe.breaks(PGD(eps=half, norm=probe.norm)), len(probe), _RISE, _CARLINI,
        found=f"standing at {probe.norm} {probe.eps:.3g}, and broken by PGD within {half:.3g}:",
        advice="the attack loses at the larger budget what a smaller one finds: give it more, smaller steps",
    )  # fmt: skip


def half_way(x: Tensor, y: Tensor) -> float:
    """Half the median L2 distance of images (N, ...) to the nearest of another class; inf for one class."""
    return other_class_distance(x[:_MANY], y[:_MANY]) / 2


def minimal_in_l2(evaluation: Evaluation) -> list[str]:
    """The attacks that looked for the nearest adversarial in L2 and knew the model."""
    adaptive = [attack for attack, knowledge in evaluation.runs if knowledge == "adaptive"]
    return [a for a in adaptive if evaluation.norm_of(a) == "l2" and not evaluation.budgets(a)]


def plausible(evaluation: Evaluation, half: float) -> Check | None:
    """5, from the table: hardly anything stands where images of two classes are nearer than adversarials.

    Args:
        evaluation: of an attack on which the nearest adversarial in L2 can be read; else None comes back.
        half: see `half_way`.
    """
    if not np.isfinite(half):
        return undecided(5, _PLAUSIBLE, "all images are of one class; evaluate images of several", _CARLINI)
    if not minimal_in_l2(evaluation):
        return None
    reach = evaluation.least_distances(None, distance="l2")
    return _stands(int((reach > half + TOLERANCE).sum()), evaluation.n, half)


def nearest(probe: Probe, half: float) -> Check:
    """5, where no attack of the evaluation looked for the nearest in L2: DDN, and NearestL2 for whom it leaves."""
    found = probe.run(DDN())
    left = probe.part(~(found.success & (found.distance <= half + TOLERANCE)))
    standing = 0
    if len(left):
        again = left.run(NearestL2())
        standing = int((~(again.success & (again.distance <= half + TOLERANCE))).sum())
    return _stands(standing, len(probe), half)


def _stands(count: int, n: int, half: float) -> Check:
    return judged_share(
        5, _PLAUSIBLE, count, n, _STANDING, _CARLINI,
        found=f"standing at L2 {half:.3g}, half the median distance to another class:",
        advice="hardly anything can be robust there: attack in L2 harder (NearestL2, more steps)",
    )  # fmt: skip


def other_class_distance(x: Tensor, y: Tensor) -> float:
    """Median over images (N, ...) of the L2 distance to the nearest image of another class; inf for one class."""
    flat = x.flatten(1).float()
    nearest = []
    for part, label in zip(flat.split(200), y.split(200), strict=True):
        far = torch.cdist(part, flat)
        nearest.append(far.masked_fill(label.unsqueeze(1) == y, float("inf")).amin(1))
    return float(torch.cat(nearest).median())
