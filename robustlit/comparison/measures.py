"""What a page says of one run, as plain values: accuracies, costs, verdict, who was got wrong as what."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustlit.comparison.again import again
from robustlit.comparison.curves import View
from robustlit.comparison.excerpt import Excerpt
from robustlit.comparison.origin import origin
from robustlit.comparison.runs import Run, text
from robustlit.results.evaluation import Evaluation
from robustlit.results.table import TOLERANCE
from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Verdict


def facts(run: Run) -> dict[str, Any]:
    """What the folder says of a run apart from its accuracies."""
    seconds = run.results.get("seconds")
    mine = {k: _number(seconds.get(k)) if isinstance(seconds, Mapping) else None for k in ("train", "evaluate")}
    behind, command = origin(run), again(run)
    return {
        "name": run.name,
        "folder": text(str(run.folder)),
        "recipe": behind.recipe,
        "method": behind.method,
        "net": behind.net,
        "parameters": _number(run.results.get("parameters")),
        "seed": _number(run.results.get("seed")),
        "seconds": {**mine, "train": _number(behind.seconds) if mine["train"] is None else mine["train"]},
        "trained": behind.trained,
        "base": behind.base,
        "verdict": None if run.verdict is None else _verdict(run.verdict),
        "again": command.command,
        "doubt": command.doubt,
        "budget": None if run.budget is None else {"norm": run.budget[0], "eps": run.budget[1]},
    }


def accuracies(run: Run, shown: Sequence[View]) -> dict[str, Any]:
    """Clean, worst case and each attack's accuracy, and what they cost: counts rather than shares."""
    evaluation = run.evaluation
    if evaluation is None:
        clean = run.results.get("clean")
        share = _number(clean.get("accuracy")) if isinstance(clean, Mapping) else None
        n = _number(run.results.get("n"))
        known = share is not None and n is not None and 0 <= share <= 1 and n >= 1
        counts = [round(share * n), int(n)] if known and share is not None and n is not None else None
        nothing: dict[str, Any] = {"complete": None, "worst": None, "attacks": {}, "passes": None}
        return {"attacked": False, "clean": counts, **nothing}
    worst = None
    if attacks := run.rests_on:
        norm, eps = _budget(run)
        quoted = evaluation.worst_case(norm=norm, eps=eps, knowledge=str(run.knowledge))
        names = [text(attack) for attack in attacks]
        worst = {"correct": quoted.correct, "n": quoted.n, "knowledge": run.knowledge, "rests_on": names}
    spent = evaluation.table[["forwards", "backwards"]].to_numpy().sum()
    return {
        "attacked": True,
        "complete": evaluation.complete,
        "clean": [evaluation.clean_accuracy.correct, evaluation.n],
        "worst": worst,
        "attacks": {
            str(k): _of_attack(run, evaluation, view.attack, view.knowledge)
            for k, view in enumerate(shown)
            if view.attack is not None and (view.attack, view.knowledge) in evaluation.runs
        },
        "passes": round(float(spent) / evaluation.n, 1),
    }


def _of_attack(run: Run, evaluation: Evaluation, attack: str, knowledge: str) -> dict[str, Any]:
    """At the quoted budget, or its own largest where it did not run there; of a minimal attack the median distance."""
    norm, budgets = evaluation.norm_of(attack), evaluation.budgets(attack, knowledge)
    passes = round(evaluation.passes(attack, knowledge=knowledge), 1)
    if not budgets:
        stood = int(np.isinf(evaluation.least_distances(attack, distance=norm, knowledge=knowledge)).sum())
        median = evaluation.median_distance(attack, distance=norm, knowledge=knowledge)
        found = {"median": median if math.isfinite(median) else None, "correct": stood}
        return {"norm": norm, "eps": None, **found, "n": evaluation.n, "passes": passes}
    quoted = run.budget[1] if run.budget is not None and run.budget[0] == norm else math.nan
    eps = quoted if any(abs(quoted - b) <= TOLERANCE for b in budgets) else budgets[-1]
    reached = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
    return {"norm": norm, "eps": eps, "correct": reached.correct, "n": reached.n, "passes": passes}


def mistakes(run: Run, excerpt: Excerpt) -> dict[str, Any] | None:
    """Who was misclassified, without an attack and by the worst case at the quoted budget, and as what.

    Returns:
        `tested` (mask over the excerpt, null for all), and for "clean" and "worst" a mask `who` and the predicted
        classes `as` in order; "worst" is null where nothing was attacked at the quoted budget.
    """
    evaluation = run.evaluation
    if evaluation is None:
        return None
    table = evaluation.table
    wrong = table[~table["clean"]].drop_duplicates("index")
    whole = evaluation.n == len(excerpt.index)
    found: dict[str, Any] = {
        "tested": None if whole else _mask(np.isin(excerpt.index, table["index"].unique())),
        "clean": _who(excerpt, wrong["index"].to_numpy(), wrong["prediction"].to_numpy()),
        "worst": None,
    }
    if run.rests_on:
        norm, eps = _budget(run)
        broken = table[table["knowledge"].isin(run.counted) & table["success"] & (table[norm] <= eps + TOLERANCE)]
        nearest = broken.sort_values(norm, kind="stable").drop_duplicates("index")
        found["worst"] = _who(excerpt, nearest["index"].to_numpy(), nearest["prediction"].to_numpy())
    return found


def broken_by_less(run: Run) -> dict[str, int]:
    """How many examples an attacker who knows less broke at the quoted budget, and the best informed one did not."""
    evaluation, found = run.evaluation, {}
    if evaluation is not None and run.budget is not None and run.rests_on:
        norm, eps = run.budget
        mine = evaluation.least_distances(None, distance=norm, knowledge=str(run.knowledge)) <= eps + TOLERANCE
        for other in ("greybox", "blackbox"):
            if other != run.knowledge and any(known == other for _, known in evaluation.runs):
                theirs = evaluation.least_distances(None, distance=norm, knowledge=other) <= eps + TOLERANCE
                found[other] = int((theirs & ~mine).sum())
    return {known: count for known, count in found.items() if count}


def _budget(run: Run) -> tuple[str, float]:
    assert run.budget is not None
    return run.budget


def _who(excerpt: Excerpt, index: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    order = np.argsort(index, kind="stable")
    return {"who": _mask(np.isin(excerpt.index, index)), "as": [int(p) for p in predictions[order]]}


def _mask(flags: np.ndarray) -> str:
    """Bits as base64, the first example in the lowest bit of the first byte."""
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()


def _number(value: object) -> float | int | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if usable and isinstance(value, (int, float)) else None  # NaN is not below anything


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """Status and counts, and the checks: sentences of those that did not pass, names of those that did."""
    told = [
        {
            "status": check.status, "number": check.number, "name": text(check.name), "failure": text(check.failure),
            "finding": text(check.finding, 600), "source": text(check.source),
        }
        for status in (FAIL, INCONCLUSIVE)
        for check in verdict.checks
        if check.status == status
    ]  # fmt: skip
    return {
        "status": verdict.status,
        "profile": text(verdict.profile),
        "counts": verdict.counts,
        "budget": {"norm": text(verdict.norm), "eps": _number(verdict.eps)},
        "n": _number(verdict.n),
        "checks": told,
        "passed": [text(f"{check.number} {check.name}") for check in verdict.checks if check.status == PASS],
    }
