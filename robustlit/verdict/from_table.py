"""What the table of an evaluation answers alone, without one more pass through the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from robustlit.checks import rounded_up
from robustlit.classifier import is_stochastic
from robustlit.results.table import DISTANCES
from robustlit.results.verdict import FAIL, Check
from robustlit.verdict.context import Context
from robustlit.verdict.effort import minimal_in_l2, several_budgets
from robustlit.verdict.spec import CheckSpec


def valid(spec: CheckSpec, context: Context) -> Check:
    """1: every adversarial example lies within its budget."""
    table = context.evaluation.table
    found = table[table["success"] & table["clean"]]
    if not len(found):
        return spec.undecided("no attack found an adversarial example: look whether the attacks run as they should")
    wrong = np.zeros(len(found), dtype=bool)
    for norm in found["norm"].unique():
        rows = (found["norm"] == norm).to_numpy()
        wrong[rows] = found[str(norm)][rows] > rounded_up(found["eps"][rows].fillna(np.inf), str(norm))
    wrong |= ~np.isfinite(found[list(DISTANCES)]).all(axis=1).to_numpy()
    names = ", ".join(found["attack"][wrong].unique())
    named = replace(spec, advice=f"{names} {spec.advice}")
    return named.share(int(wrong.sum()), len(found), "adversarial examples beyond their budget:")


def fgsm_alone(spec: CheckSpec, context: Context) -> Check | None:
    """2: FGSM broke nothing that the other attacks did not; None unless an iterative attack ran beside it."""
    iterative = any(context.evaluation.budgets(name) for name in _attacks(context) if name != "fgsm")
    return _alone(spec, context, "fgsm", "FGSM alone breaks") if iterative else None


def monotone(spec: CheckSpec, context: Context) -> Check | None:
    """4: the table shows no rise of accuracy with eps; None where it does not, which a sweep sees to by itself."""
    evaluation = context.evaluation
    if not several_budgets(evaluation):
        return None
    worst, at = 0.0, ""
    for attack, knowledge in evaluation.runs:
        rows = evaluation.table[(evaluation.table["attack"] == attack) & (evaluation.table["knowledge"] == knowledge)]
        robust = 1 - rows.dropna(subset="eps").groupby("eps")["success"].mean()
        rises = robust.sort_index().diff().dropna()
        if len(rises) and rises.max() > worst:
            worst, at = float(rises.max()), f" ({attack} at {rises.idxmax():g})"
    band = 1.96 * (0.25 / evaluation.n) ** 0.5  # half the 95 % interval of a share of one half
    advice = f"the attack loses at larger budgets what it found at smaller ones{at}: give it more, smaller steps"
    check = replace(spec, limit=band, advice=advice).value(worst, "the largest rise is")
    return check if check.status == FAIL else None


def plausible(spec: CheckSpec, context: Context) -> Check | None:
    """5: hardly an example is robust at half the L2 distance between classes; None without a minimal L2 attack."""
    if not np.isfinite(context.half_way):
        return spec.undecided("all images are of one class; evaluate images of several")
    if not minimal_in_l2(context.evaluation):
        return None
    reach = context.evaluation.least_distances(None, distance="l2")
    return robust_half_way(spec, context, int((reach > rounded_up(context.half_way, "l2")).sum()), context.evaluation.n)


def robust_half_way(spec: CheckSpec, context: Context, count: int, n: int) -> Check:
    """Return check 5 from the number of examples that are robust half way to another class."""
    return spec.share(count, n, f"robust at L2 {context.half_way:.3g}, half the median distance to another class:")


def square_alone(spec: CheckSpec, context: Context) -> Check | None:
    """13: Square broke nothing that the other attacks did not; None unless it ran beside another."""
    return _alone(spec, context, "square", "Square alone breaks")


def proven_and_broken(spec: CheckSpec, context: Context) -> Check:
    """28: no example is broken within a distance at which it is proven robust."""
    proven = context.evaluation.certificates
    assert proven is not None
    if is_stochastic(context.model):
        return spec.undecided("a random model is judged by 20 votes, and certified for those of endless draws")
    both = np.zeros(context.evaluation.n, dtype=bool)
    for norm in proven.norms:
        each = [context.evaluation.least_distances(None, distance=norm, knowledge=k) for k in _knowledge(context)]
        both |= np.min(each, axis=0) <= proven.radii(norm=norm).to_numpy()
    return spec.share(int(both.sum()), context.evaluation.n, "both proven robust and broken at one budget:")


def _knowledge(context: Context) -> list[str]:
    return list(dict.fromkeys(known for _, known in context.evaluation.runs))


def less_knowledge_alone(spec: CheckSpec, context: Context) -> Check | None:
    """14: attacks that know less than everything broke nothing more; None where none of them ran."""
    evaluation, right = context.evaluation, context.right
    ran = [known for known in ("greybox", "blackbox") if known in {k for _, k in evaluation.runs}]
    counts = [
        int((~_broken(context) & _broken(context, knowledge=known)).sum())
        for known in ran
        if evaluation.rests_on(norm=right.norm, eps=right.eps, knowledge=known)
    ]
    if not counts or context.nothing_to_probe():
        return None
    return spec.share(max(counts), evaluation.n, "broken only by examples crafted on another network:")


def _attacks(context: Context) -> list[str]:
    return context.evaluation.rests_on(norm=context.right.norm, eps=context.right.eps)


def _broken(context: Context, attack: str | None = None, knowledge: str = "adaptive") -> np.ndarray:
    """Return which examples (n,) an attack, or all of that knowledge, broke within the budget."""
    right = context.right
    reach = context.evaluation.least_distances(attack, distance=right.norm, knowledge=knowledge)
    return reach <= rounded_up(right.eps, right.norm)


def _alone(spec: CheckSpec, context: Context, attack: str, found: str) -> Check | None:
    """Check the share of examples that one attack broke and no other; None where there is nothing to compare."""
    names = _attacks(context)
    if attack not in names or len(names) == 1 or context.nothing_to_probe():
        return None
    rest = np.any([_broken(context, name) for name in names if name != attack], axis=0)
    return spec.share(int((_broken(context, attack) & ~rest).sum()), context.evaluation.n, found)
