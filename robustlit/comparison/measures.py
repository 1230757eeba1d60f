"""What a page shows of one run, as plain values: accuracies, costs, verdict, and which examples are misclassified."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from robustlit.checks import TOLERANCE, rounded_up
from robustlit.comparison.curves import View
from robustlit.comparison.excerpt import Excerpt
from robustlit.comparison.origin import again, origin
from robustlit.comparison.runs import Run, section, text
from robustlit.results.evaluation import Evaluation
from robustlit.results.rows import rows_of
from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Verdict


def facts(run: Run) -> dict[str, Any]:
    """Return what the folder says about a run apart from its accuracies."""
    source, command = origin(run), again(run)
    seconds = {key: _number(section(run.results, "seconds").get(key)) for key in ("train", "evaluate")}
    if seconds["train"] is None:
        seconds["train"] = _number(source.seconds)
    budget = None if run.budget is None else {"norm": run.budget[0], "eps": run.budget[1]}
    verdict = None if run.verdict is None else _verdict(run.verdict)
    numbers = {key: _number(run.results.get(key)) for key in ("parameters", "seed")}
    return {
        "name": run.name, "folder": text(str(run.folder)), **asdict(source), **numbers, "seconds": seconds,
        "verdict": verdict, "again": command.command, "note": command.note, "budget": budget,
    }  # fmt: skip


def accuracies(run: Run, shown: Sequence[View]) -> dict[str, Any]:
    """Return clean, worst-case and each attack's accuracy, as counts, and what they cost."""
    evaluation = run.evaluation
    if evaluation is None:
        clean = _clean_counts(run.results)
        return {
            "attacked": False,
            "complete": None,
            "clean": clean,
            "worst": None,
            "certified": None,
            "attacks": {},
            "passes": None,
        }
    worst = None
    if run.budget and run.rests_on:
        accuracy = evaluation.worst_case(norm=run.budget[0], eps=run.budget[1], knowledge=str(run.knowledge))
        names = [text(attack) for attack in run.rests_on]
        worst = {"correct": accuracy.correct, "n": accuracy.n, "knowledge": run.knowledge, "rests_on": names}
    passes = evaluation.table[["forwards", "backwards"]].to_numpy().sum()
    return {
        "attacked": True,
        "complete": evaluation.complete,
        "clean": [evaluation.clean_accuracy.correct, evaluation.n],
        "worst": worst,
        "certified": _certified(run, evaluation),
        "attacks": {
            str(k): _of_attack(run, evaluation, view.attack, view.knowledge)
            for k, view in enumerate(shown)
            if view.attack is not None and (view.attack, view.knowledge) in evaluation.runs
        },
        "passes": round(float(passes) / evaluation.n, 1),
    }


def _certified(run: Run, evaluation: Evaluation) -> list[int] | None:
    """Return how many examples are proven robust at the reported budget, and all; None where nothing was certified."""
    proven = evaluation.certificates
    if proven is None or run.budget is None or run.budget[0] not in proven.norms:
        return None
    accuracy = proven.accuracy(norm=run.budget[0], eps=run.budget[1])
    return [accuracy.correct, accuracy.n]


def _clean_counts(results: Mapping[str, Any]) -> list[int] | None:
    """Return the correct and all test images of a run that was not attacked, None where results.json does not say."""
    share, n = _number(section(results, "clean").get("accuracy")), _number(results.get("n"))
    if share is not None and n is not None and 0 <= share <= 1 and n >= 1:
        return [round(share * n), int(n)]
    return None


def _of_attack(run: Run, evaluation: Evaluation, attack: str, knowledge: str) -> dict[str, Any]:
    """Return the accuracy at the reported budget, else at the attack's largest; the median distance without budgets."""
    norm, budgets = evaluation.norm_of(attack), evaluation.budgets(attack, knowledge)
    passes = round(evaluation.passes(attack, knowledge=knowledge), 1)
    if not budgets:
        robust = int(np.isinf(evaluation.least_distances(attack, distance=norm, knowledge=knowledge)).sum())
        median = evaluation.median_distance(attack, distance=norm, knowledge=knowledge)
        found = {"median": median if math.isfinite(median) else None, "correct": robust}
        return {"norm": norm, "eps": None, **found, "n": evaluation.n, "passes": passes}
    reported = run.budget[1] if run.budget is not None and run.budget[0] == norm else math.nan
    eps = reported if any(abs(reported - b) <= TOLERANCE for b in budgets) else budgets[-1]
    accuracy = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
    return {"norm": norm, "eps": eps, "correct": accuracy.correct, "n": accuracy.n, "passes": passes}


def mistakes(run: Run, excerpt: Excerpt) -> dict[str, Any] | None:
    """Return the examples misclassified without an attack and in the worst case at the reported budget.

    Returns:
        `tested` (mask over the excerpt, null for all), and for "clean" and "worst" a mask `wrong` and the predicted
        classes `as` in order; "worst" is null where nothing was attacked at the reported budget.
    """
    if run.evaluation is None:
        return None
    table, worst = run.evaluation.table, None
    if run.budget and run.rests_on:
        norm, eps = run.budget
        broken = table[table["knowledge"].isin(run.counted) & table["success"] & (table[norm] <= rounded_up(eps, norm))]
        worst = _misclassified(excerpt, broken.sort_values(norm, kind="stable"))  # as the nearest one is
    whole = run.evaluation.n == len(excerpt.index)
    tested = None if whole else _mask(np.isin(excerpt.index, table["index"].unique()))
    return {"tested": tested, "clean": _misclassified(excerpt, table[~table["clean"]]), "worst": worst}


def broken_by_less(run: Run) -> dict[str, int]:
    """Return how many examples a less informed attacker broke at the reported budget that the best one missed."""
    found = run.evaluation
    if found is None or run.budget is None or not run.rests_on:
        return {}
    norm, eps = run.budget
    ran = dict.fromkeys(known for _, known in found.runs)
    broken = {k: found.least_distances(None, distance=norm, knowledge=k) <= rounded_up(eps, norm) for k in ran}
    missed = {k: int((broken[k] & ~broken[str(run.knowledge)]).sum()) for k in ("greybox", "blackbox") if k in ran}
    return {k: count for k, count in missed.items() if count}


def _misclassified(excerpt: Excerpt, rows: pd.DataFrame) -> dict[str, Any]:
    """Return a mask of the examples in `rows`, and the prediction of the first row of each."""
    each = rows.drop_duplicates("index").sort_values("index", kind="stable")
    wrong = _mask(np.isin(excerpt.index, each["index"].to_numpy()))
    return {"wrong": wrong, "as": [int(p) for p in each["prediction"]]}


def _mask(flags: np.ndarray) -> str:
    """Return bits as base64, the first example in the lowest bit of the first byte."""
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()


def unmasked(mask: str, n: int) -> np.ndarray:
    """Return the (n,) bool of a mask of `mistakes`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8), bitorder="little")[:n].astype(bool)


def _number(value: Any) -> float | int | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if usable else None  # NaN compares as false


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """Return the figure's status, counts and checks: all of those that did not pass, the names of those that did."""
    rows = rows_of(verdict.checks)
    checks = [
        {
            "status": row.first.status, "numbers": row.numbers, "name": text(row.name),
            "failure": text(row.first.failure), "finding": text(row.first.finding, 600),
            "source": text(row.first.source) if len(row.checks) == 1 else "",
        }
        for row in sorted(rows, key=lambda row: row.first.status != FAIL)
        if row.first.status in (FAIL, INCONCLUSIVE)
    ]  # fmt: skip
    budget = {"norm": text(verdict.norm), "eps": _number(verdict.eps)}
    passed = [
        text(f"{row.numbers} {row.name}" if len(row.checks) == 1 else f"{row.numbers}: {row.first.finding}")
        for row in rows
        if row.first.status == PASS
    ]
    robust = None if verdict.accuracy is None else [verdict.accuracy.correct, verdict.accuracy.n]
    return {
        "status": verdict.status, "robust": robust, "profile": text(verdict.profile), "counts": verdict.counts,
        "budget": budget, "n": _number(verdict.n), "checks": checks, "passed": passed,
    }  # fmt: skip
