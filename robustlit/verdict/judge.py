"""verdict(): which examples are looked at once more, and by which checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, BudgetAttack
from robustlit.attacks.victim import VOTES
from robustlit.classifier import Detecting, attack_view, is_stochastic, undefended
from robustlit.evaluation.evaluate import batches_of
from robustlit.results.evaluation import Evaluation
from robustlit.results.verdict import FAIL, PASS, Check, Verdict, undecided
from robustlit.verdict import from_attacks, from_probes, from_table, growth
from robustlit.verdict.binarisation import binarisation
from robustlit.verdict.detector import DETECTOR, detector
from robustlit.verdict.effort import (
    FEWEST,
    FULL,
    QUERIES,
    QUICK_QUERIES,
    SHARE_NEAREST,
    Sizes,
    affordable,
    quick,
    spent,
    steps_of,
)
from robustlit.verdict.probe import Probe, nearest_of, standing_of
from robustlit.verdict.strongest import budget_of, strongest

PROFILES = ("quick", "full")
_PLANNED, _LEFT = 0.8, 0.95  # of what a quick verdict may cost: planned, and what Square may use it up to
_PLANTED = 64  # examples of the binarisation test
_NEAREST = 50  # whose nearest adversarial in L2 is looked for, in the full profile; in the quick one a share of the few
_POOL = 2  # times as many, at least, are near the boundary by the table, as are then looked at hardest


def verdict(
    evaluation: Evaluation,
    model: nn.Module,
    data: Any,
    attacks: Mapping[str, Attack] | Sequence[Attack] | None = None,
    *,
    norm: str | None = None,
    eps: float | None = None,
    profile: str = "quick",
    substitute: nn.Module | None = None,
    seed: int = 0,
) -> Verdict:
    """Looks for signs that a robust accuracy is overestimated.

    Twenty checks: 1 valid witnesses, 2 iterative beats one-step, 3 an unbounded attack breaks everything, 4 accuracy
    falls with eps, 5 no robustness beyond the distance of classes, 6 steps and 7 restarts converged, 8 optimisation
    finished, 9 gradients exist and 10 are stable, 11 no silent success, 12 the twin's witnesses hold, 13 gradient-free
    and 14 black-box do not win, 15 randomness accounted for, 16 outputs are logits, 17 ablation, 18 random noise does
    not win, 19 a planted adversarial is found, 20 the detector was attacked too. A share fails only where its Wilson
    95 % interval lies above the limit.

    Args:
        evaluation: of the model, with a budget attack that knew it ("adaptive").
        model: what was evaluated.
        data: what it was evaluated on, as for `evaluate`.
        attacks: those of the evaluation, so that probes take the same with more steps; None takes PGD for them.
        norm, eps: the budget to judge; None takes the first budget attack's own.
        profile: "quick" (as many examples as cost a tenth of the evaluation's passes, or 10 000 where that is less;
            7 and 11 not of ensembles, not 19) or "full" (500 examples).
        substitute: a net distilled from the model, for check 14 of a model without a defense.
        seed: of the probes.

    Raises:
        ValueError: an unknown profile, no adaptive budget attack, data that are not the evaluation's.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    named = dict(attacks) if isinstance(attacks, Mapping) else {a.name: a for a in attacks or ()}
    norm, eps = budget_of(evaluation, named, norm, eps)
    attack = strongest(evaluation, named, norm, eps)
    standing = standing_of(evaluation, norm, eps)
    full, cost = profile == "full", spent(evaluation)
    may = quick(evaluation)
    sizes = FULL if full else affordable(_PLANNED * may, model, attack, evaluation, eps)
    x, y, index = _examples(data, model, evaluation)
    probe = _probe(model, (x, y, index), standing, attack, norm, eps, seed, sizes.wide)
    chosen, stands_for = nearest_of(evaluation, norm, eps, sizes.wide, _POOL * sizes.hard, seed)
    there = torch.isin(index, torch.tensor(chosen, dtype=index.dtype, device=index.device))
    near = replace(
        probe, x=x[there], y=y[there], index=index[there], standing=torch.ones_like(y[there], dtype=torch.bool),
        stands_for=stands_for,
    )  # fmt: skip
    half = growth.half_way(x, y)
    read = [growth.monotone(evaluation)] if growth.several_budgets(evaluation) else []
    read += [check] if (check := growth.plausible(evaluation, half)) is not None else []
    checks = [from_table.valid(evaluation), *read]
    told = {check.number for check in read}
    if standing and not any(standing.values()):
        left = {number: name for number, name in _names(model).items() if number not in told}
        checks += [Check(number, name, PASS, _NONE_STANDS) for number, name in left.items()]
        return _written(checks, evaluation, profile, probe, cost)
    few = probe.first(sizes.few)
    # Before check 13, which spends what is left.
    alarm = detector(few, evaluation, x[: sizes.wide], full) if len(few) else None
    if alarm is not None:
        checks.append(alarm)
    elif not len(few) and isinstance(model, Detecting):
        checks.append(undecided(20, DETECTOR, _TOO_SMALL, ""))
    if not len(standing) or (len(probe) < FEWEST and not full):
        why = _TOO_SMALL if len(standing) else "no example is classified right"
        checks += [undecided(number, name, why, "") for number, name in _PROBED.items() if number not in told]
    else:
        allowed = None if full else int(_LEFT * may)
        checks += _probed(probe, near, evaluation, sizes, allowed, substitute, half, told)
    return _written(checks, evaluation, profile, probe, cost)


def _written(checks: list[Check], evaluation: Evaluation, profile: str, probe: Probe, cost: int) -> Verdict:
    """The verdict of all checks, in the order of their numbers."""
    checks.sort(key=lambda check: check.number)
    passes = probe.meter.passes
    found = Verdict(checks, profile, len(probe), probe.norm, probe.eps, probe.seed, passes, passes / max(1, cost))
    return found.of(evaluation)


def _names(model: nn.Module) -> dict[int, str]:
    """The checks that need more than the table."""
    return _PROBED | ({20: DETECTOR} if isinstance(model, Detecting) else {})


_PROBED = {
    2: "iterative beats one-step", 3: "an unbounded attack breaks everything", 4: "accuracy falls with eps",
    5: "no robustness beyond the distance of classes", 6: "steps converged",
    7: "restarts converged", 8: "the optimisation finished", 9: "gradients exist", 10: "gradients are stable",
    11: "no silent success", 12: "witnesses of the twin are witnesses", 13: "gradient-free does not win",
    14: "black-box does not win", 15: "randomness is accounted for", 16: "outputs are logits",
    17: "without the defense the net falls", 18: "random noise does not win", 19: "a planted adversarial is found",
}  # fmt: skip


def _probed(
    wide: Probe,
    near: Probe,
    evaluation: Evaluation,
    sizes: Sizes,
    allowed: int | None,
    substitute: nn.Module | None,
    half: float,
    told: set[int],
) -> list[Check]:
    full, norm, eps = allowed is None, wide.norm, wide.eps
    gradients = from_probes.gradients_exist(wide)
    blind = gradients.status == FAIL and gradients.figure is None  # then nothing that differentiates can run
    few = wide.first(sizes.few)
    # Without gradients nobody can tell who is near the boundary, and the sweep's larger budgets told nothing.
    hard = wide.first(sizes.hard) if blind or sizes.hard < FEWEST else near.hardest(sizes.hard)
    one_step = from_table.one_step_in_table(evaluation, norm, eps)
    square = from_table.gradient_free_in_table(evaluation, norm, eps)
    found = [from_table.broken_only_by(evaluation, known, norm, eps) for known in ("greybox", "blackbox")]
    ignorant = [counts for counts in found if counts is not None]

    def first_step() -> Check:
        return from_attacks.iterative_beats_one_step(*one_step) if one_step else from_attacks.one_step(hard)

    def black_box() -> Check:
        if ignorant:
            return from_attacks.black_box_does_not_win(*max(ignorant))
        return from_attacks.black_box(hard, substitute)

    def gradient_free() -> Check:
        if square:
            return from_attacks.gradient_free_does_not_win(*square, None)
        if allowed is None:
            return from_attacks.gradient_free(hard, QUERIES)
        each = (VOTES if is_stochastic(wide.model) else 1) * max(1, len(hard))  # comes last, for what is left
        left = (allowed - wide.meter.passes) // each
        return from_attacks.gradient_free(hard, min(max(left, QUICK_QUERIES), QUERIES))

    def restarts() -> Check:
        if full or steps_of(wide.attack):
            return from_attacks.more_restarts(hard)
        return undecided(7, _PROBED[7], "another whole ensemble is for profile='full'", "")

    def planted() -> Check:
        return binarisation(few.first(_PLANTED)) if full else undecided(19, _PROBED[19], "only in profile='full'", "")

    cheap: dict[int, Callable[[], Check]] = {
        10: lambda: from_probes.gradients_stable(wide), 15: lambda: from_probes.randomness(wide),
        16: lambda: from_probes.outputs(wide), 18: lambda: from_probes.random_noise(wide),
    }  # fmt: skip

    def beyond() -> Check:
        return growth.nearest(few.first(_NEAREST if full else max(FEWEST, len(few) // SHARE_NEAREST)), half)

    def silent() -> Check:
        if full or steps_of(wide.attack):
            return from_attacks.silent_success(few)
        return undecided(11, _PROBED[11], "to watch a whole ensemble is for profile='full'", "")

    attacked: dict[int, Callable[[], Check]] = {
        3: lambda: from_attacks.unbounded(few), 4: lambda: growth.smaller_budget(few), 5: beyond,
        8: lambda: from_attacks.finished(few), 11: silent, 12: lambda: from_attacks.twin_holds(few),
        17: lambda: from_attacks.ablation(few), 19: planted,
    }  # fmt: skip
    hardest: dict[int, Callable[[], Check]] = {
        2: first_step, 6: lambda: from_attacks.more_steps(hard), 7: restarts, 14: black_box, 13: gradient_free,
    }  # fmt: skip
    known = told | ({2} if one_step else set()) | ({13} if square else set()) | ({14} if ignorant else set())
    small = {number for looks, n in ((attacked, len(few)), (hardest, sizes.hard)) if n < FEWEST for number in looks}
    small = set() if full else small - known - _for_nothing(wide, substitute)
    differentiate = {*attacked, 2, 6, 7, 14} - known
    checks = [gradients]
    for number, look in {**cheap, **attacked, **hardest}.items():
        if number in told:
            continue
        if blind and number in differentiate:
            checks.append(undecided(number, _PROBED[number], "the model gives no gradient (check 9)", ""))
        elif number in small:
            checks.append(undecided(number, _PROBED[number], _TOO_SMALL, ""))
        else:
            checks.append(look())
    return checks


def _for_nothing(probe: Probe, substitute: nn.Module | None) -> set[int]:
    """The checks that a quick verdict settles without a look, however few examples it has."""
    bare = undefended(probe.model) is probe.model
    free = {19: True, 12: attack_view(probe.model) is probe.model, 17: bare, 14: bare and substitute is None}
    free |= dict.fromkeys((7, 11), not steps_of(probe.attack))
    return {number for number, known in free.items() if known}


_NONE_STANDS = "no example stands at this budget, so that its accuracy cannot be overstated"
_TOO_SMALL = "what a quick verdict may cost pays for too few examples; evaluate more images, or take the full profile"


def _examples(data: Any, model: nn.Module, evaluation: Evaluation) -> tuple[Tensor, Tensor, Tensor]:
    """The images, classes and numbers of the evaluation, checked against its labels."""
    labels = evaluation.table.drop_duplicates("index").set_index("index")["label"]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    seen = 0
    for x, y, index in batches_of(data, 500)[0]:
        number = torch.arange(seen, seen + len(y)) if index is None else index.cpu()
        seen += len(y)
        keep = torch.tensor([int(i) in labels.index for i in number.tolist()])
        found.append((x[keep].to(device), y[keep].to(device), number[keep].to(device)))
    x, y, index = (torch.cat(part) for part in zip(*found, strict=True))
    if len(y) != len(labels) or labels.loc[index.tolist()].tolist() != y.tolist():
        raise ValueError(
            f"the data are not those of the evaluation: it has {len(labels)} examples, {len(y)} of their numbers are "
            "in the data, or their classes differ; give what was evaluated"
        )
    return x, y, index


def _probe(
    model: nn.Module,
    examples: tuple[Tensor, Tensor, Tensor],
    standing: Mapping[int, bool],
    attack: BudgetAttack,
    norm: str,
    eps: float,
    seed: int,
    count: int,
) -> Probe:
    """`count` of the rightly classified examples, drawn by `seed`."""
    x, y, index = examples
    right = torch.tensor([int(i) in standing for i in index.tolist()], device=x.device)
    places = torch.nonzero(right).squeeze(1)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[: max(count, 0)]
    places = places[order.sort().values.to(places.device)]
    stand = torch.tensor([standing[int(i)] for i in index[places].tolist()], dtype=torch.bool, device=x.device)
    return Probe(model, x[places], y[places], index[places], stand, attack, norm, eps, seed)
