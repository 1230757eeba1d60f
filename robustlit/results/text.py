"""An evaluation in a few lines of text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from robustlit.checks import budget_text

if TYPE_CHECKING:
    from robustlit.results.evaluation import Evaluation

_OF_ITS_FOLDER = re.compile(r"(name|run_dir|resume)=")  # settings that lead to a folder that exists


def text_of(evaluation: Evaluation) -> str:
    """Return a few lines: clean accuracy, each attack at its budgets and the worst case, with 95 % intervals."""
    rows = lines_of(evaluation)
    wide, budget = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    return "\n".join(
        [title_of(evaluation), *(f"  {name:<{wide}}  {at:<{budget}}  {found}" for name, at, found in rows)]
    )


def title_of(evaluation: Evaluation) -> str:
    """Return the number of examples, with what makes them fewer than they seem."""
    n = evaluation.n
    caveat = f" ({evaluation.caveat})" if evaluation.complete is False or evaluation.copies else ""
    return f"Evaluation of {n} example{'s' * (n != 1)}{caveat}"


def lines_of(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return attack, budget and accuracy of each line; none of an empty evaluation."""
    if not evaluation.n:
        return []
    parts = (_attacks, _worst_cases, _certified)
    return [("clean", "", str(evaluation.clean_accuracy)), *(line for part in parts for line in part(evaluation))]


def _attacks(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Yield a line per budget of each attack; for a minimal attack one with its median distance."""
    for attack, knowledge in evaluation.runs:
        norm, name = evaluation.norm_of(attack), evaluation.label(attack, knowledge)
        budgets = evaluation.budgets(attack, knowledge)
        for eps in budgets:
            accuracy = evaluation.accuracy(attack=attack, norm=norm, eps=eps, knowledge=knowledge)
            yield name, f"{norm} {budget_text(eps)}", str(accuracy)
        if not budgets:
            median = evaluation.median_distance(attack, distance=norm, knowledge=knowledge)
            yield name, f"{norm} nearest", f"median distance {median:.4g}"


def _certified(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Yield a line per budget at which an adaptive attack ran in the norm of a certificate."""
    if (proven := evaluation.certificates) is None:
        return
    for norm in proven.norms:
        for eps in attacked_budgets(evaluation, norm):
            yield "certified", f"{norm} {budget_text(eps)}", str(proven.accuracy(norm=norm, eps=eps))


def attacked_budgets(evaluation: Evaluation, norm: str) -> list[float]:
    """Return the budgets in a norm at which an adaptive attack ran, ascending."""
    names = {attack for attack, known in evaluation.runs if known == "adaptive" and evaluation.norm_of(attack) == norm}
    return sorted({eps for name in names for eps in evaluation.budgets(name)})


def _worst_cases(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Yield a line per budget at which an adaptive attack ran."""
    ran = [attack for attack, knowledge in evaluation.runs if knowledge == "adaptive"]
    budgets = {(evaluation.norm_of(attack), eps) for attack in ran for eps in evaluation.budgets(attack)}
    for norm, eps in sorted(budgets):
        yield "worst case", f"{norm} {budget_text(eps)}", str(evaluation.worst_case(norm=norm, eps=eps))


def part_of_all(everything: Mapping[str, Any]) -> str:
    """Return which images the `all_images` of results.json are: "all 10000", "all 41 tested" or "30, cut short"."""
    n, of = everything["n"], everything.get("of")
    if not everything.get("complete", True):
        return f"{n}, cut short"
    tested = of is not None and n + everything.get("copies", 0) < of
    return f"all {n} tested" if tested else f"all {n}"


def repeatable(command: str) -> str:
    """Return a stored command line, quoted anew, without what names its folder; "" if it cannot be read."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark without its partner
        return ""
    return shlex.join(word for word in words if not _OF_ITS_FOLDER.match(word))
