"""Checks that look at the answers and gradients of the model, a few passes for each example."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.classifier import draws_of, is_stochastic
from robustlit.evaluation.constancy import differing
from robustlit.results.verdict import FAIL, Check
from robustlit.verdict.context import Context
from robustlit.verdict.probe import corner
from robustlit.verdict.spec import CheckSpec

_NEIGHBOURS = 5
_LARGEST_RADIUS = 0.1  # L-inf, of the neighbours: Pintor et al. 2022, on MNIST
_RANDOM_POINTS = 10
_ANSWERS = 5  # forwards that must agree: AutoAttack, checks.py
_LOST = 0.05  # of a declared random model: adversarial examples that fresh draws may undo


def gradients_exist(spec: CheckSpec, context: Context) -> Check:
    """9: the gradient of every example differs from zero."""
    zero = context.zero_gradient
    if isinstance(zero, str):
        return spec.check(FAIL, f"no gradient: {zero}", None, spec.limit)
    return spec.share(int(zero.sum()), len(zero), "examples whose gradient is zero at every pixel:")


def gradients_stable(spec: CheckSpec, context: Context) -> Check:
    """10: the loss hardly changes among random neighbours."""
    wide = context.wide
    radius = min(_LARGEST_RADIUS, wide.eps / 3) if wide.norm == "linf" else wide.eps / 3

    def look(victim: Victim) -> Tensor:
        loss = Criterion(wide.y).log_odds
        here = loss(victim.forward_once(wide.x)).float()
        ball, draws, change = wide.ball(radius), wide.draws(10), []
        for _ in range(_NEIGHBOURS):
            there = loss(victim.forward_once(ball.random_point(draws))).float()
            change.append(((there - here).abs() / here.abs().clamp_min(1e-6)).clamp(max=1))
        return torch.stack(change).mean(0)

    change = float(wide.with_victim(look).mean())
    return spec.value(change, f"within {wide.norm} {radius:.3g} the loss changes by a share of")


def randomness(spec: CheckSpec, context: Context) -> Check:
    """15: the model gives the same answer each time, or its adversarial examples hold on fresh draws."""
    wide = context.wide
    if not is_stochastic(wide.model):
        answers = wide.with_victim(lambda victim: torch.stack([victim.logits(wide.x) for _ in range(_ANSWERS)]))
        count = int(differing(answers).sum())  # answers  # (5, m, K)
        return spec.share(count, len(wide), "examples that five forwards answer differently:")
    found = wide.run(wide.attack)
    again = wide.part(found.success)
    if not len(again):
        return spec.undecided("declared random; no adversarial example was found that could be judged again")
    again.x, again.seed = found.x_adv[found.success], wide.seed + 1
    held = again.with_victim(lambda victim: victim.criterion(again.y).reached(victim.logits(again.x)))
    text = f"declared random, gradients over {draws_of(wide.model)} draws; adversarial examples lost on fresh draws:"
    spec = replace(spec, advice="take more draws for each gradient: EOT(model, 20)", limit=_LOST)
    return spec.share(int((~held).sum()), len(held), text)


def outputs(spec: CheckSpec, context: Context) -> Check:
    """16: the model returns finite logits, not probabilities."""
    wide = context.wide
    logits = wide.with_victim(lambda victim: victim.forward_once(wide.x))
    scores = logits.double()
    if bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-4).all()):
        finding = "the outputs are probabilities, whose gradients vanish where they saturate: return logits"
        return spec.check(FAIL, finding)
    bad = int((~logits.isfinite().all(1)).sum())
    return spec.share(bad, len(wide), "examples whose logits are not finite:")


def random_noise(spec: CheckSpec, context: Context) -> Check:
    """18: random points of the ball break no robust example."""
    left = context.wide.part(context.wide.robust)

    def look(victim: Victim) -> Tensor:
        criterion, draws, ball = victim.criterion(left.y), left.draws(18), left.ball()
        broken = torch.zeros(len(left), dtype=torch.bool, device=left.x.device)
        for number in range(_RANDOM_POINTS):
            z = ball.random_point(draws) if number % 2 else corner(ball, draws.uniform(left.x))
            broken |= criterion.reached(victim.logits(z))
        return broken

    count = int(left.with_victim(look).sum()) if len(left) else 0
    return spec.share(count, len(context.wide), f"{_RANDOM_POINTS} random points alone break")
