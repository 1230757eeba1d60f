"""Checks that look at the model. Each returns a Check; passes are counted by the probe."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.classifier import draws_of, is_stochastic
from robustlit.evaluation.constancy import differing
from robustlit.results.verdict import FAIL, Check, judged_share, judged_value, undecided
from robustlit.threat import Ball, expand
from robustlit.verdict.probe import Probe

_CARLINI = "Carlini et al. 2019, arXiv:1902.06705"
_PINTOR = "Pintor et al. 2022, arXiv:2106.09947"
_AUTOATTACK = "Croce, Hein 2020, arXiv:2003.01690"
_ATHALYE = "Athalye et al. 2018, arXiv:1802.00420"
_NEIGHBOURS = 5
_RANDOM_POINTS = 10
_STABLE = 0.1


def gradients_exist(probe: Probe) -> Check:
    """9: every example has a gradient that is not zero."""
    name = "gradients exist"

    def look(victim: Victim) -> Tensor:
        return victim.gradient(probe.x, Criterion(probe.y).log_odds)[2]

    try:
        gradient = probe.with_victim(look)
    except (ValueError, RuntimeError) as error:
        return Check(9, name, FAIL, f"no gradient: {error}", None, 0.0, _AUTOATTACK)
    zero = int((gradient.flatten(1).abs().amax(1) == 0).sum())
    return judged_share(
        9, name, zero, len(probe), 0.0, _PINTOR, found="examples whose gradient is zero at every pixel:",
        advice="the model rounds, saturates or is dead there: give it an attack_view() with a surrogate (BPDA)",
    )  # fmt: skip


def gradients_stable(probe: Probe) -> Check:
    """10: the loss hardly changes among random neighbours."""
    radius = min(0.1, probe.eps / 3) if probe.norm == "linf" else probe.eps / 3

    def look(victim: Victim) -> Tensor:
        loss = Criterion(probe.y).log_odds
        here = loss(once(victim, probe.x)).float()
        ball, draws, change = probe.ball(radius), probe.draws(10), []
        for _ in range(_NEIGHBOURS):
            there = loss(once(victim, ball.random_point(draws))).float()
            change.append(((there - here).abs() / here.abs().clamp_min(1e-6)).clamp(max=1))
        return torch.stack(change).mean(0)

    found = float(probe.with_victim(look).mean())
    return judged_value(
        10, "gradients are stable", found, _STABLE, _PINTOR,
        found=f"within {probe.norm} {radius:.3g} the loss changes by a share of",
        advice="a loss that jumps between neighbours hides its slope: average gradients (EOT), or use Square",
    )  # fmt: skip


def randomness(probe: Probe) -> Check:
    """15: the model answers alike each time, or is attacked in expectation."""
    name = "randomness is accounted for"
    if is_stochastic(probe.model):
        found = probe.run(probe.attack)
        again = probe.part(found.success)
        if not len(again):
            return undecided(15, name, "declared random; no witness was found that could be judged again", _ATHALYE)
        again.x, again.seed = found.x_adv[found.success], probe.seed + 1
        held = again.with_victim(lambda victim: victim.criterion(again.y).reached(victim.logits(again.x)))
        return judged_share(
            15, name, int((~held).sum()), len(held), 0.05, _ATHALYE,
            found=f"declared random, gradients over {draws_of(probe.model)} draws; witnesses lost on fresh draws:",
            advice="take more draws for each gradient: EOT(model, 20)",
        )  # fmt: skip

    def look(victim: Victim) -> list[Tensor]:
        return [victim.logits(probe.x) for _ in range(5)]

    answers = torch.stack(probe.with_victim(look))  # (5, m, K)
    return judged_share(
        15, name, int(differing(answers).sum()), len(probe), 0.0, _ATHALYE,
        found="examples that five forwards answer differently:",
        advice="the model is random: wrap it in EOT(model, 20), so that gradients and judgements are averages",
    )  # fmt: skip


def outputs(probe: Probe) -> Check:
    """16: the model returns logits."""
    name = "outputs are logits"
    logits = probe.with_victim(lambda victim: once(victim, probe.x))
    classes = logits.double()
    if bool((classes >= 0).all()) and bool(((classes.sum(1) - 1).abs() < 1e-4).all()):
        return Check(
            16, name, FAIL, "the outputs are probabilities, whose gradients vanish where they saturate: return logits",
            None, None, _AUTOATTACK,
        )  # fmt: skip
    bad = int((~logits.isfinite().all(1)).sum())
    return judged_share(
        16, name, bad, len(probe), 0.0, _AUTOATTACK, found="examples whose logits are not finite:",
        advice="find out where they overflow; what is not finite counts for no attack",
    )  # fmt: skip


def random_noise(probe: Probe) -> Check:
    """18: random points of the ball break nothing that stood."""
    left = probe.part(probe.standing)

    def look(victim: Victim) -> Tensor:
        criterion, draws = victim.criterion(left.y), left.draws(18)
        won = torch.zeros(len(left), dtype=torch.bool, device=left.x.device)
        for number in range(_RANDOM_POINTS):
            z = left.ball().random_point(draws) if number % 2 else _corner(left.ball(), draws.uniform(left.x))
            won |= criterion.reached(victim.logits(z))
        return won

    count = int(left.with_victim(look).sum()) if len(left) else 0
    return judged_share(
        18, "random noise does not win", count, len(probe), 0.002, _CARLINI,
        found=f"{_RANDOM_POINTS} random points alone break",
        advice="an attack that loses to noise goes the wrong way, or sees no gradient: look at the sign of its steps, "
        "and at check 9",
    )  # fmt: skip


def _corner(ball: Ball, uniform: Tensor) -> Tensor:
    """A random point at the surface of the ball."""
    direction = (uniform - 0.5).sign()
    if ball.norm == "l2":
        direction = direction / direction[0].numel() ** 0.5
    return ball.project(ball.x + direction * expand(ball.eps, ball.x))


def once(victim: Victim, x: Tensor) -> Tensor:
    """Logits of one forward, also of a stochastic model."""
    with torch.no_grad():
        return victim._forward(victim.model, x, torch.arange(len(x), device=x.device))
