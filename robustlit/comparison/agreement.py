"""Whether results.json says what the table of examples says: every number on a page is from the table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from robustlit.checks import TOLERANCE
from robustlit.comparison.runs import Run, section
from robustlit.results.evaluation import Evaluation
from robustlit.results.table import CURRENT_NAME, FORMER_NAME, EvaluationError, rename


def disagreements(run: Run) -> list[str]:
    """Return a phrase, "clean 99.00 % (98.80 % in the table)", for each accuracy of results.json that differs."""
    if run.evaluation is None:
        return []
    table = run.evaluation.whole or run.evaluation
    pairs = [*_accuracies(run.results, table)]
    wrong = [
        f"{name} {100 * told:.2f} % ({100 * found:.2f} % in the table)"
        for name, told, found in pairs
        if told is not None and abs(told - found) > TOLERANCE
    ]
    told = section(run.results, "verdict").get("figure")
    if run.verdict is not None and isinstance(told, str) and told != run.verdict.status:
        wrong.append(f"figure {told!a:.40} ({run.verdict.status} in verdict.json)")
    return wrong


def _accuracies(results: Mapping[str, Any], table: Evaluation) -> Iterator[tuple[str, float | None, float]]:
    """Yield the name of each accuracy, what results.json says and what the table says."""
    yield "clean", _share(section(results, "clean")), float(table.clean_accuracy)
    worst = section(results, "worst_case")
    said: dict[str, tuple[Mapping[Any, Any], str | None, str]] = {"worst case": (worst, None, "adaptive")}
    attacks = section(results, "attacks")
    for attack, knowledge in table.runs:
        label = table.label(attack, knowledge)
        former = table.label(rename(attack, CURRENT_NAME, FORMER_NAME), knowledge)
        said[label] = (section(attacks, label) or section(attacks, former), attack, knowledge)
    for name, (found, one, known) in said.items():
        norm, eps = found.get("norm"), found.get("eps")
        if not isinstance(norm, str) or not isinstance(eps, (int, float)):
            continue
        try:
            accuracy = table.accuracy(norm=norm, eps=float(eps), attack=one, knowledge=known)
        except EvaluationError:
            continue
        yield name, _share(found), float(accuracy)


def _share(found: Mapping[str, Any]) -> float | None:
    share = found.get("accuracy")
    usable = isinstance(share, (int, float)) and not isinstance(share, bool) and math.isfinite(share)
    return float(share) if usable and isinstance(share, (int, float)) else None
