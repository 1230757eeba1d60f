"""Checks that look at the answers and gradients of the model, a few passes for each example."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robustlit.attacks.losses import are_probabilities, are_saturated
from robustlit.attacks.victim import Victim
from robustlit.classifier import draws_of, is_stochastic, names_class
from robustlit.evaluation.constancy import differing
from robustlit.results.verdict import FAIL, Check
from robustlit.verdict.context import Context
from robustlit.verdict.landscape import LossSurface
from robustlit.verdict.probe import corner
from robustlit.verdict.spec import CheckSpec

_NEIGHBOURS = 5
_LARGEST_RADIUS = 0.1  # L-inf, of the neighbours: Pintor et al. 2022, on MNIST
_RANDOM_POINTS = 10
_SURE = (
    "a model that is not random is judged better as what it is, and most checks cannot look at a random one: do not "
    "wrap it in EOT, and give it stochastic = False"
)
_ANSWERS = 5  # forwards that must agree: AutoAttack, checks.py
# How many times what gradients promise the loss may change, and how many times the smallest gradient the largest
# may be: on the honest nets of docs/evaluation.md, 98 % of the examples stay below 1.4 and 13.
_JUMP, _UNEVEN = 5, 50
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
        surface = LossSurface(wide, victim)
        here = surface.loss_at(wide.x)
        ball, draws, change = wide.ball(radius), wide.draws(10), []
        for _ in range(_NEIGHBOURS):
            there = surface.loss_at(ball.random_point(draws))
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
    few = context.few
    answers = few.with_victim(lambda victim: torch.stack([victim.forward_once(few.x) for _ in range(_ANSWERS)]))
    if not bool(differing(answers).any()):
        finding = f"declared random, but five forwards agree on each of {len(few)} images: {_SURE}"
        return spec.check(FAIL, finding, None, _LOST)
    found = few.run(few.attack)
    again = few.part(found.success)
    if not len(again):
        return spec.undecided("declared random; no adversarial example was found that could be judged again")
    again.x, again.seed = found.x_adv[found.success], few.seed + 1
    held = again.with_victim(lambda victim: victim.criterion(again.y).reached(victim.logits(again.x)))
    text = f"declared random, gradients over {draws_of(few.model)} draws; adversarial examples lost on fresh draws:"
    spec = replace(spec, advice="take more draws for each gradient: EOT(model, 20)", limit=_LOST)
    return spec.share(int((~held).sum()), len(held), text)


def alive_inside(spec: CheckSpec, context: Context) -> Check:
    """23: at points inside the ball, and at its surface, the answers are finite and the gradients differ from zero."""
    seen = context.landscape
    dead = ~seen.answered | seen.rise.isnan().any(0)
    return spec.share(int(dead.sum()), len(dead), "examples with a point that has no finite answer or no gradient:")


def uphill(spec: CheckSpec, context: Context) -> Check:
    """24: the loss of the model rises along the gradient that an attack gets."""
    rise = context.landscape.rise
    rise = rise[~rise.isnan()]
    if not len(rise):
        return spec.undecided("no point inside a ball has a gradient (check 23)")
    return spec.share(int((rise <= 0).sum()), len(rise), "points where the loss does not rise along the gradient:")


def accounted_for(spec: CheckSpec, context: Context) -> Check:
    """25: the gradients account for the changes of the loss within the ball: none happens between flat places."""
    seen = context.landscape
    least, most = seen.predicted_rise.aminmax(dim=0)
    uneven = (seen.spread > _JUMP * most) | (most > _UNEVEN * least)
    text = (
        f"examples whose loss changes {_JUMP} times what gradients promise, or whose gradients differ {_UNEVEN}-fold:"
    )
    return spec.share(int(uneven.sum()), len(uneven), text)


def outputs(spec: CheckSpec, context: Context) -> Check:
    """16: the model returns finite logits, not probabilities or what a sigmoid or tanh makes of logits."""
    wide = context.wide
    logits = wide.with_victim(lambda victim: victim.forward_once(wide.x))
    if are_probabilities(logits):
        finding = "the outputs are probabilities, whose gradients vanish where they saturate: return logits"
        return spec.check(FAIL, finding)
    if are_saturated(logits):
        finding = "the outputs look like those of a saturated sigmoid or tanh, where gradients vanish: return its input"
        return spec.check(FAIL, finding)
    bad = int((~names_class(logits)).sum())
    return spec.share(bad, len(wide), "examples without a predicted class (logits that are NaN, or all -inf):")


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
