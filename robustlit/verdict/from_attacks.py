"""Checks that attack a few examples once more. Each returns a Check; passes are counted by the probe."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD, BudgetAttack, Square, Transfer
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.classifier import attack_view, can_reject, is_stochastic, undefended
from robustlit.results.verdict import INCONCLUSIVE, PASS, Check, judged_share, judged_value, undecided
from robustlit.verdict.from_probes import once
from robustlit.verdict.probe import Probe, ascend

_CARLINI = "Carlini et al. 2019, arXiv:1902.06705"
_PINTOR = "Pintor et al. 2022, arXiv:2106.09947"
_AUTOATTACK = "Croce, Hein 2020, arXiv:2003.01690"
_HALF_POINT = 0.005
_WATCHED = 50  # examples that are attacked one at a time


def one_step(probe: Probe) -> Check:
    """2: FGSM breaks nothing that iterative attacks left standing."""
    count = probe.breaks(FGSM(eps=probe.eps, norm=probe.norm))
    return iterative_beats_one_step(count, probe.n)


def iterative_beats_one_step(count: int, n: int) -> Check:
    """2, from the count of examples that FGSM alone breaks."""
    return judged_share(
        2, "iterative beats one-step", count, n, _HALF_POINT, _CARLINI, found="FGSM alone breaks",
        advice="the iterative attacks run into a masked gradient, or go the wrong way: look at the size and sign of "
        "their steps, and evaluate with WorstCase",
    )  # fmt: skip


def unbounded(probe: Probe) -> Check:
    """3: with the whole box to move in, the attack breaks everything; with half of it, it leaves chance."""
    name = "an unbounded attack breaks everything"
    sides = probe.x[0].numel() ** 0.5 if probe.norm == "l2" else 1.0
    whole, half = (probe.run(replace(probe.attack, eps=share * sides)) for share in (1.0, 0.5))
    left, stands = int((~whole.success).sum()), int((~half.success).sum())
    advice = (
        "the attack misses what must be there: look at the size and sign of its steps; where a layer masks gradients, "
        "differentiate a surrogate in attack_view() (BPDA)"
    )
    full = judged_share(
        3, name, left, len(probe), 0.0, _CARLINI, found=f"standing at {probe.norm} eps {sides:.3g}:", advice=advice
    )
    if full.status != PASS:
        return full
    chance = 1 / max(2, _classes(probe))
    return judged_share(
        3, name, stands, len(probe), chance, _CARLINI, advice=advice,
        found=f"standing at {probe.norm} eps {sides:.3g}: 0, at {sides / 2:.3g}:",
    )  # fmt: skip


def more_steps(probe: Probe) -> Check:
    """6: an attack of twice the steps breaks nothing more."""
    name = "steps converged"
    doubled = _doubled(probe.attack, "steps")
    if doubled is None:
        doubled = PGD(eps=probe.eps, norm=probe.norm, steps=100)
    return judged_share(
        6, name, probe.breaks(doubled), probe.n, _HALF_POINT, _CARLINI,
        found=f"{doubled.name} with {doubled.steps} steps breaks in addition",
        advice=f"double the steps until nothing changes (steps={doubled.steps})",
    )  # fmt: skip


def more_restarts(probe: Probe) -> Check:
    """7: starting again breaks nothing more."""
    again = replace(probe, seed=probe.seed + 1)
    count = again.breaks(probe.attack)
    return judged_share(
        7, "restarts converged", count, probe.n, _HALF_POINT, _CARLINI,
        found=f"{probe.attack.name} from other starts breaks in addition",
        advice="give it more restarts (restarts=5), or evaluate with WorstCase",
    )  # fmt: skip


def finished(probe: Probe) -> Check:
    """8: the loss of the attack has stopped rising at its end."""
    name = "the optimisation finished"
    steps = int(getattr(probe.attack, "steps", 40))
    last = min(10, steps // 4)  # of fewer steps, ten would be the whole way
    if not last:
        return undecided(8, name, f"{steps} steps are too few to have an end; give the attack more", _PINTOR)
    share = getattr(probe.attack, "_step_over_eps", 2.5 / steps)
    losses = ascend(probe, steps, float(share))
    span = (losses.amax(0) - losses.amin(0)).clamp_min(1e-12)
    best = losses.cummax(0).values
    rises = ((best[-1] - best[-1 - last]) / span).sort().values
    # A median's 95 % interval starts at the order statistic that a binomial of one half reaches in 2.5 %.
    first = int(len(rises) / 2 - 0.98 * len(rises) ** 0.5)
    low = float(rises[first]) if len(rises) > 5 else 0.0  # of fewer, there is none
    return judged_value(
        8, name, float(rises.median()), 0.05, _PINTOR, low=low,
        found=f"of {steps} steps the last {last} still bring, of the whole rise of the loss, a share of",
        advice="the attack is stopped on its way up: give it more steps, or larger ones",
    )  # fmt: skip


def silent_success(probe: Probe) -> Check:
    """11: no example is adversarial on the way of the attack and counted as robust at its end.

    The evaluation's attack runs again on examples that it left standing, one at a time, while the model looks on.
    """
    name = "no silent success"
    if attack_view(probe.model) is not probe.model or is_stochastic(probe.model):
        return undecided(
            11,
            name,
            "only a model that is differentiated itself can look on, not one with an attack_view() or random draws",
            _PINTOR,
        )
    standing = torch.nonzero(probe.standing).squeeze(1)[:_WATCHED]
    silent = 0
    for number in range(len(standing)):
        one = probe.part(standing[number : number + 1])
        watched = _Watched(probe.model, int(one.y))
        silent += int(not bool(one.run(probe.attack, watched).success) and watched.misled)
    return judged_share(
        11, name, silent, max(1, len(standing)), _HALF_POINT, _PINTOR,
        found="counted as robust, but adversarial on the way of the attack:",
        advice="the attack returns its last point instead of the best: judge every iterate",
    )  # fmt: skip


class _Watched(nn.Module):
    """A model that remembers whether any point that it was shown misled it about an example of class `label`."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label, self.misled = model, label, False
        self.rejects = can_reject(model)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        criterion = Criterion(torch.full((len(x),), self.label, device=x.device), rejects=self.rejects)
        self.misled |= bool(criterion.reached(logits.detach()).any())
        return logits


def twin_holds(probe: Probe) -> Check:
    """12: what the attack view is misled by misleads the model."""
    name, view = "witnesses of the twin are witnesses", attack_view(probe.model)
    if view is probe.model:
        return Check(12, name, PASS, "the model is differentiated itself", 0.0, 0.01, _PINTOR)
    found = probe.run(probe.attack, view)
    if not bool(found.success.any()):
        return undecided(12, name, "the attack did not mislead the attack view at all", _PINTOR)
    won = probe.part(found.success)
    won.x = found.x_adv[found.success]

    def look(victim: Victim) -> Tensor:
        return victim.criterion(won.y).reached(victim.logits(won.x))

    held = won.with_victim(look)
    return judged_share(
        12, name, int((~held).sum()), len(held), 0.01, _PINTOR, found="witnesses of the attack view that fail:",
        advice="the twin is too far from the model: judge on the model while searching, or find a better surrogate",
    )  # fmt: skip


def gradient_free(probe: Probe, queries: int) -> Check:
    """13: Square breaks nothing that gradients left standing."""
    return gradient_free_does_not_win(
        probe.breaks(Square(eps=probe.eps, norm=probe.norm, queries=queries)), probe.n, queries
    )


def gradient_free_does_not_win(count: int, n: int, queries: int | None) -> Check:
    """13, from the count of examples that Square alone breaks."""
    effort = f" with {queries} queries" if queries else ""
    return judged_share(
        13, "gradient-free does not win", count, n, 0.002, _AUTOATTACK, found=f"Square{effort} alone breaks",
        advice="the gradients mislead: evaluate with WorstCase, which has Square in it; where a layer masks gradients, "
        "differentiate a surrogate in attack_view() (BPDA)",
    )  # fmt: skip


def black_box(probe: Probe, substitute: nn.Module | None) -> Check:
    """14: crafted on another net, nothing falls that stood."""
    name = "black-box does not win"
    source = undefended(probe.model) if substitute is None else substitute
    if source is probe.model:
        return undecided(
            14,
            name,
            "there is no other net to craft on; --verdict=full distils one; in Python give substitute=distil(...).net",
            _CARLINI,
        )
    count = probe.breaks(Transfer(PGD(eps=probe.eps, norm=probe.norm), source))
    return black_box_does_not_win(count, probe.n)


def black_box_does_not_win(count: int, n: int) -> Check:
    """14, from the count of examples that fall only to points crafted on another net."""
    return judged_share(
        14, "black-box does not win", count, n, _HALF_POINT, _CARLINI, found="crafted on another net, there fall alone",
        advice="the gradients of the model mislead: attack through a better attack_view()",
    )  # fmt: skip


def ablation(probe: Probe) -> Check:
    """17: without its defense the net falls to the same attack."""
    name, bare = "without the defense the net falls", undefended(probe.model)
    if bare is probe.model:
        return undecided(17, name, "the model names no defense that could be taken away (undefended())", _CARLINI)
    standing = int((~probe.run(probe.attack, bare).success).sum())
    share = standing / len(probe)
    text = f"of the undefended net {standing} of {len(probe)} stand ({100 * share:.3g} %; about 0 expected)"
    if share <= 0.05:
        return Check(17, name, PASS, text, share, 0.05, _CARLINI)
    return Check(
        17, name, INCONCLUSIVE,
        f"{text}: the attack is too weak, or the net was robust by itself; evaluate it alone with WorstCase",
        share, 0.05, _CARLINI,
    )  # fmt: skip


def _doubled(attack: BudgetAttack, name: str) -> Any:
    if name not in {f.name for f in fields(attack)}:
        return None
    return replace(attack, **{name: 2 * getattr(attack, name)})


def _classes(probe: Probe) -> int:
    count: int = probe.with_victim(lambda victim: victim.criterion(probe.y).classes(once(victim, probe.x[:1])))
    return count
