"""An evaluation in a few lines, as `print` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustlit.results.evaluation import Evaluation


def to_text(evaluation: Evaluation) -> str:
    """What was found, a line each: clean accuracy, each attack at its budgets, the worst case; with 95 % intervals."""
    n = evaluation.n
    caveat = f" ({evaluation.caveat})" if evaluation.complete is False else ""
    title = f"Evaluation of {n} example{'s' * (n != 1)}{caveat}"
    if not n:
        return title
    rows = [("clean", "", str(evaluation.clean_accuracy))]
    for attack, knowledge in evaluation.runs:
        rows += _of_attack(evaluation, attack, knowledge)
    rows += _worst_cases(evaluation)
    wide, budget = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join([title, *(f"  {name:<{wide}}  {at:<{budget}}  {found}" for name, at, found in rows)])


def _of_attack(evaluation: Evaluation, attack: str, knowledge: str) -> list[tuple[str, str, str]]:
    """The lines of a run: one a budget; of a minimal attack one, with how far its witnesses are."""
    norm, name = evaluation.norm_of(attack), evaluation.label(attack, knowledge)
    budgets = evaluation.budgets(attack, knowledge)
    if budgets:
        return [
            (
                name,
                f"{norm} {eps:.4g}",
                str(evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)),
            )
            for eps in budgets
        ]
    median = evaluation.median_distance(attack, distance=norm, knowledge=knowledge)
    return [(name, f"{norm} nearest", f"median distance {median:.4g}")]


def _worst_cases(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """The worst case at every budget that an attack which knows the defense ran at."""
    ran = [attack for attack, knowledge in evaluation.runs if knowledge == "adaptive"]
    budgets = sorted({(evaluation.norm_of(attack), eps) for attack in ran for eps in evaluation.budgets(attack)})
    return [
        ("worst case", f"{norm} {eps:.4g}", str(evaluation.worst_case(norm=norm, eps=eps))) for norm, eps in budgets
    ]
