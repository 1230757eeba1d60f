"""Which budget of an evaluation is judged, and by which of its attacks it is looked at once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from robustlit.attacks import PGD, Attack, BudgetAttack
from robustlit.results.evaluation import Evaluation
from robustlit.verdict.effort import steps_of


def budget_of(
    evaluation: Evaluation, named: Mapping[str, Attack], norm: str | None, eps: float | None
) -> tuple[str, float]:
    """The budget to judge: as asked for, else the own eps of the first budget attack, else its largest."""
    for name, knowledge in evaluation.runs:
        budgets = evaluation.budgets(name, knowledge)
        if knowledge != "adaptive" or not budgets or norm not in (None, evaluation.norm_of(name)):
            continue
        if eps is None:
            own = getattr(named.get(name), "eps", None)
            eps = float(own) if own in budgets else budgets[-1]
        if any(abs(eps - b) < 1e-9 for b in budgets):
            return evaluation.norm_of(name), eps
    asked = f" at {norm or 'any norm'} eps {eps:g}" if eps is not None else ""
    raise ValueError(
        f"there is no adaptive budget attack{asked} to judge in this evaluation ({', '.join(evaluation.attacks)}); "
        "evaluate with PGD or WorstCase"
    )


def strongest(evaluation: Evaluation, named: Mapping[str, Attack], norm: str, eps: float) -> BudgetAttack:
    """The budget attack that differentiates and leaves fewest standing, at `eps`; PGD where none is known."""
    known = {
        name: attack
        for name, attack in named.items()
        if isinstance(attack, BudgetAttack)
        and attack.needs_gradients
        and not attack.adaptive_only
        and attack.norm == norm
        and name in evaluation.rests_on(norm=norm, eps=eps)
    }
    if not known:
        return PGD(eps=eps, norm=norm)
    # Of attacks that leave as many, the longest is looked at.
    least = min(known, key=lambda n: (float(evaluation.accuracy(attack=n, norm=norm, eps=eps)), -steps_of(known[n])))
    return replace(known[least], eps=eps)
