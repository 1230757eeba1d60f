"""What a page says of one run, as plain values: accuracies, costs, curves, who was got wrong as what."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustlit.comparison.curves import resolution, ruler, thinned
from robustlit.comparison.excerpt import Excerpt
from robustlit.comparison.runs import STATUSES, Run, text
from robustlit.evaluation.results import Evaluation
from robustlit.threat import TOLERANCE

AXES = ("l2", "linf")


@dataclass(frozen=True)
class View:
    """One thing that runs are looked at under: an attack with its knowledge, or the worst case over all (None)."""

    attack: str | None
    knowledge: str

    @property
    def name(self) -> str:
        """As a figure names it."""
        return text(Evaluation.label(self.attack or "worst case", self.knowledge))


def views(runs: Sequence[Run]) -> list[View]:
    """All that any of the runs was looked at under, worst cases first."""
    pairs = list(dict.fromkeys(pair for run in runs if run.evaluation for pair in run.evaluation.runs))
    known = [k for k in ("adaptive", "greybox", "blackbox") if any(k == knowledge for _, knowledge in pairs)]
    return [*(View(None, k) for k in known), *(View(attack, knowledge) for attack, knowledge in pairs)]


def facts(run: Run) -> dict[str, Any]:
    """What the folder says of a run apart from its accuracies."""
    seconds = run.results.get("seconds")
    return {
        "name": run.name,
        "folder": text(str(run.folder)),
        "recipe": text(run.results["recipe"]) if "recipe" in run.results else None,
        "method": _method(run.config),
        "net": _net(run.config),
        "parameters": _number(run.results.get("parameters")),
        "seed": _number(run.results.get("seed")),
        "seconds": {
            k: _number(seconds.get(k)) if isinstance(seconds, Mapping) else None for k in ("train", "evaluate")
        },
        "verdict": None if run.checks is None else _verdict(run.checks),
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
        return {"attacked": False, "complete": True, "clean": counts, "worst": None, "attacks": {}, "passes": None}
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


def curves(runs: Sequence[Run], shown: Sequence[View]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy against distance of every run under every view.

    Returns:
        For each axis its `unit` and `end`; for each run {axis: {number of the view: steps as `thinned` writes them}}.
    """
    axes: dict[str, Any] = {}
    of_runs: list[dict[str, Any]] = [{axis: {} for axis in AXES} for _ in runs]
    for axis in AXES:
        reaches = {
            (r, k): run.evaluation.least_distances(view.attack, distance=axis, knowledge=view.knowledge)
            for r, run in enumerate(runs)
            if run.evaluation is not None
            for k, view in enumerate(shown)
            if any(view.knowledge == known and view.attack in (None, a) for a, known in run.evaluation.runs)
        }
        end = max((float(d) for reach in reaches.values() for d in [_farthest(reach)]), default=0.0)
        budgets = sorted({run.budget[1] for run in runs if run.budget is not None and run.budget[0] == axis})
        axes[axis] = {"unit": ruler(end), "end": end}
        steps = resolution(2 * len(reaches))
        for (r, k), reach in reaches.items():
            of_runs[r][axis][str(k)] = thinned(reach, ruler(end), end, budgets, steps)
    return axes, of_runs


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
        broken = table[(table["knowledge"] == run.knowledge) & table["success"] & (table[norm] <= eps + TOLERANCE)]
        nearest = broken.sort_values(norm, kind="stable").drop_duplicates("index")
        found["worst"] = _who(excerpt, nearest["index"].to_numpy(), nearest["prediction"].to_numpy())
    return found


def broken_by_less(run: Run) -> dict[str, int]:
    """How many examples an attacker who knows less broke at the quoted budget, and the quoted worst case did not."""
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


def _farthest(reach: np.ndarray) -> float:
    finite = reach[np.isfinite(reach)]
    return float(finite.max()) if len(finite) else 0.0


def _who(excerpt: Excerpt, index: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    order = np.argsort(index, kind="stable")
    return {"who": _mask(np.isin(excerpt.index, index)), "as": [int(p) for p in predictions[order]]}


def _mask(flags: np.ndarray) -> str:
    """Bits as base64, the first example in the lowest bit of the first byte."""
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()


def _number(value: object) -> float | int | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if usable and isinstance(value, (int, float)) else None  # NaN is not below anything


def _verdict(checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {status: sum(check["status"] == status for check in checks) for status in STATUSES}
    failed = [text(f"{c.get('number', '?')} {c.get('name', '')}") for c in checks if c["status"] == "FAIL"]
    return {"counts": counts, "failed": failed}


def _target(section: object) -> str | None:
    target = section.get("_target_") if isinstance(section, Mapping) else None
    return None if target is None else text(str(target).rsplit(".", 1)[-1])


def _method(config: Mapping[str, Any]) -> str | None:
    parts = [_target(config.get(key)) for key in ("objective", "defense")]
    return " + ".join(part for part in parts if part) or None


def _net(config: Mapping[str, Any]) -> str | None:
    model = config.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    target = _target(model)
    return f"{target} {text(name)}" if target and isinstance(name, str) else target
