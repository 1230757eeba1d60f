"""verdict(): make every check of the list on a model and its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import PGD, Attack, BudgetAttack
from robustlit.attacks.memory import is_out_of_memory
from robustlit.checks import budget_text, check_choice
from robustlit.evaluation.batches import batches_of
from robustlit.results.evaluation import Evaluation
from robustlit.results.verdict import INCONCLUSIVE, PASS, Check, Verdict
from robustlit.verdict import effort
from robustlit.verdict.checks import CHECKS
from robustlit.verdict.context import TOO_SMALL, Context
from robustlit.verdict.probe import Probe, robust_examples
from robustlit.verdict.spec import FEW, HARD, ROWS, SHORT, TABLE, WIDE, CheckSpec

PROFILES = ("quick", "full")
_NO_MEMORY = "memory does not suffice for this check; judge on a device with more, or fewer images in the quick profile"
_LONGEST_REASON = 300  # characters of an error that a finding quotes
_TURNS = (TABLE, WIDE, FEW, SHORT, ROWS, HARD)  # the order in which the samples are looked at


def verdict(
    evaluation: Evaluation, model: nn.Module, data: Any, attacks: Mapping[str, Attack] | Sequence[Attack] | None = None,
    *, norm: str | None = None, eps: float | None = None, profile: str = "quick", substitute: nn.Module | None = None,
    seed: int = 0,
) -> Verdict:  # fmt: skip
    """Look for signs that a robust accuracy is overestimated, by the checks in `robustlit.verdict.checks.CHECKS`.

    Args:
        evaluation: An evaluation of `model` on `data`, with an adaptive budget attack.
        model, data: As they were given to `evaluate`.
        attacks: The attacks of the evaluation, which are then probed with more steps; None takes PGD.
        norm, eps: The budget to judge, eps in pixel units; None takes the first budget attack's own.
        profile: "quick" (as many examples as a tenth of the evaluation's passes pays for, or the floor of
            `effort.least`, where that is more; no check 19, and 7 and 11 only for attacks with steps) or "full" (500
            examples).
        substitute: A network distilled from the model, for check 14 of a model without a defense.
        seed: Seed of the probes.

    Raises:
        ValueError: An unknown profile, no adaptive budget attack, or data that are not the evaluation's.
    """
    check_choice(profile, "profile", PROFILES)
    named = dict(attacks) if isinstance(attacks, Mapping) else {a.name: a for a in attacks or ()}
    norm, eps = _budget_of(evaluation, named, norm, eps)
    attack, name = _strongest(evaluation, named, norm, eps)
    x, y, index = _examples(data, model, evaluation)
    known = robust_examples(evaluation, norm, eps)
    robust = torch.tensor([known.get(int(i), False) for i in index.tolist()], dtype=torch.bool, device=x.device)
    right = torch.tensor([int(i) in known for i in index.tolist()], dtype=torch.bool, device=x.device)
    probe = Probe(model, x, y, index, robust, attack, norm, eps, seed).part(right)
    spent = int((evaluation.table["forwards"] + evaluation.table["backwards"]).sum())
    sizes, allowed = effort.FULL, None
    if profile == "quick":
        price = effort.price_of(model, attack, evaluation, eps)
        passes = max(int(effort.SHARE * spent), effort.least(price, evaluation.n))
        sizes, allowed = effort.affordable(effort.PLANNED * passes, CHECKS, price), int(effort.SPENT * passes)
    context = Context(evaluation, x, y, probe, sizes, allowed, substitute, named, name)
    ordered = sorted(CHECKS, key=lambda spec: (spec.last, _TURNS.index(spec.sample)))
    checks = sorted((make_check(s, context) for s in ordered if s.applies(context)), key=lambda check: check.number)
    cost, n = probe.meter["passes"], len(context.wide)
    found = Verdict(checks, profile, n, norm, eps, seed, cost, cost / max(1, spent))
    return found.of(evaluation)


def make_check(spec: CheckSpec, context: Context) -> Check:
    """Make one check; one that raises an error is undecided, so that the others are not lost."""
    try:
        return _made(spec, context)
    except Exception as error:  # of the model's code, or of its attack view: any kind
        if is_out_of_memory(error):
            return spec.undecided(_NO_MEMORY)
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        return spec.undecided(f"the check ended in {type(error).__name__}: {reason}")


def _made(spec: CheckSpec, context: Context) -> Check:
    """Make one check: by the table, else by a look at its examples if it has what it needs."""
    if spec.reads is not None and (check := spec.reads(spec, context)) is not None:
        return check
    if (idle := context.nothing_to_probe(spec.fewest)) is not None:
        return spec.check(*idle)
    for need in spec.needs:
        if not need.met(context):
            return spec.check(PASS, need.otherwise, 0.0, spec.limit) if need.passes else spec.undecided(need.otherwise)
    if spec.look is None or (not context.full and context.sizes[spec.sample] < spec.fewest):
        return spec.check(INCONCLUSIVE, TOO_SMALL)
    return spec.look(spec, context)


def _examples(data: Any, model: nn.Module, evaluation: Evaluation) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, classes and numbers of the evaluation's examples, after a comparison with its labels."""
    labels = evaluation.table.drop_duplicates("index").set_index("index")["label"]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found = []
    for x, y, index in batches_of(data).triples:
        keep = torch.tensor([int(i) in labels.index for i in index.tolist()])
        found.append((x[keep].to(device), y[keep].to(device), index.cpu()[keep].to(device)))
    x, y, index = (torch.cat(part) for part in zip(*found, strict=True))
    if len(y) != len(labels) or labels.loc[index.tolist()].tolist() != y.tolist():
        raise ValueError(
            f"the data are not those of the evaluation: it has {len(labels)} examples, {len(y)} of their numbers are "
            "in the data, or their classes differ; give what was evaluated"
        )
    return x, y, index


def _budget_of(
    evaluation: Evaluation, named: Mapping[str, Attack], norm: str | None, eps: float | None
) -> tuple[str, float]:
    """Return the budget to judge: as asked for, else the own eps of the first budget attack, else its largest.

    Raises:
        ValueError: No adaptive budget attack ran at it.
    """
    for name, budgets in _adaptive(evaluation, norm):
        if eps is None:
            own = getattr(named.get(name), "eps", None)
            eps = float(own) if own in budgets else budgets[-1]
        if any(abs(eps - b) < 1e-9 for b in budgets):
            return evaluation.norm_of(name), eps
    asked = f" at {norm or 'any norm'} eps {budget_text(eps)}" if eps is not None else ""
    raise ValueError(
        f"there is no adaptive budget attack{asked} to judge in this evaluation ({', '.join(evaluation.attacks)}); "
        "evaluate with PGD or WorstCase"
    )


def _strongest(
    evaluation: Evaluation, named: Mapping[str, Attack], norm: str, eps: float
) -> tuple[BudgetAttack, str | None]:
    """Return the gradient-based budget attack that leaves the lowest accuracy at `eps`, at this eps, and its name.

    Where none is known it is PGD, which has no name in the evaluation.
    """
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
        return PGD(eps=eps, norm=norm), None

    # Of attacks with the same accuracy, take the one with the most steps.
    def rank(name: str) -> tuple[float, int]:
        return float(evaluation.accuracy(attack=name, norm=norm, eps=eps)), -effort.steps_of(known[name])

    least = min(known, key=rank)
    return replace(known[least], eps=eps), least


def quoted_budget(evaluation: Evaluation, norm: str | None, eps: float | None) -> tuple[str | None, float | None]:
    """Return (norm, eps) if an adaptive attack of that norm ran at eps, else (None, None): the first attack's own."""
    budgets = [b for _, each in _adaptive(evaluation, norm) for b in each]
    return (norm, eps) if eps is not None and any(abs(eps - b) < 1e-9 for b in budgets) else (None, None)


def _adaptive(evaluation: Evaluation, norm: str | None) -> list[tuple[str, list[float]]]:
    """Return the adaptive budget attacks of a norm, or of any for None, with their budgets."""
    names = [a for a, known in evaluation.runs if known == "adaptive" and norm in (None, evaluation.norm_of(a))]
    return [(name, budgets) for name in names if (budgets := evaluation.budgets(name))]
