"""Checks that attack some examples once more."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustlit.attacks import DDN, EOT, FGSM, PGD, JointAttack, NearestL2, Square, Transfer
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import budget_text, rounded_up
from robustlit.classifier import attack_view, can_reject, draws_of, is_stochastic, undefended
from robustlit.results.verdict import FAIL, INCONCLUSIVE, PASS, Check
from robustlit.verdict.context import TOO_SMALL, Context
from robustlit.verdict.effort import QUERIES, QUICK_QUERIES, QUICK_SHARE_IN_L2, steps_of, votes_of
from robustlit.verdict.from_table import robust_half_way
from robustlit.verdict.probe import RELATIVE_STEP, Probe, ascend
from robustlit.verdict.spec import FEWEST, WIDE, CheckSpec

_LAST_STEPS = 10  # that should no longer raise the loss: Pintor et al. 2022
_SMALLER = (0.5, 0.25)  # of the budget
SMALLER_STEPS = 10  # at each of these, in the quick profile
_USUAL_STEPS = 40  # of an attack that has none of its own: PGD's default
_MANY_STEPS = 100  # of the PGD that probes such an attack
_WATCHED = 50  # examples that are attacked one at a time
_RATES = (0.01, 0.05)  # false alarms, at which Carlini et al. 2019 ask for the detections of check 20
_DRAWN_IN = 4  # one example in so many of check 13 is drawn at random
_MOST_IN_L2 = 50  # examples that are attacked in L2 in the full profile
# About 270 passes. Where NearestL2 broke 53 of 85 digits that ascents inside the ball had left, this breaks 36.
_NEAREST_IN_SHORT = NearestL2(explore=20, candidates=1, kept=1, refine=30, finish=1, boundary=4)


def one_step(spec: CheckSpec, context: Context) -> Check:
    """2: FGSM breaks nothing that the iterative attacks did not."""
    hard = context.hard
    return spec.share(hard.breaks(FGSM(eps=hard.eps, norm=hard.norm)), hard.n, "FGSM alone breaks")


def unbounded(spec: CheckSpec, context: Context) -> Check:
    """3: with an eps that reaches every image the attack breaks everything; with half of it, all but chance."""
    few = context.few
    whole = _whole(few)
    found = [few.run(replace(few.attack, eps=share * whole)) for share in (1.0, 0.5)]
    robust, robust_at_half = (int((~result.success).sum()) for result in found)
    text = f"robust at {few.norm} eps {budget_text(whole)}:"
    check = spec.share(robust, len(few), text)
    if check.status != PASS:
        return check
    first = few.first(1)
    classes = first.with_victim(lambda victim: victim.criterion(first.y).classes(victim.forward_once(first.x)))
    spec = replace(spec, limit=1 / max(2, classes))
    return spec.share(robust_at_half, len(few), f"{text} 0, at {whole / 2:.3g}:")


def _whole(probe: Probe) -> float:
    """Return the eps whose ball holds every image."""
    return probe.x[0].numel() ** 0.5 if probe.norm == "l2" else 1.0


def smaller_budget(spec: CheckSpec, context: Context) -> Check:
    """4: PGD with a half and a quarter of the budget breaks no robust example.

    A table shows no rise of accuracy with eps, as an example that is broken within one budget counts as broken at every
    larger one, and one that is robust at the attack's own eps is not attacked at smaller ones.
    """
    short, broken = context.short, torch.zeros(len(context.short), dtype=torch.bool, device=context.labels.device)
    for share in _SMALLER:
        left = torch.nonzero(~broken).squeeze(1)
        if len(left):
            steps = _USUAL_STEPS if context.full else SMALLER_STEPS
            weaker = PGD(eps=share * short.eps, norm=short.norm, steps=steps)
            broken[left] = short.part(left).run(weaker).success
    if not context.full and len(short) < FEWEST and not bool(broken.any()):
        return spec.undecided(TOO_SMALL)
    at, within = budget_text(short.eps), budget_text(max(_SMALLER) * short.eps)
    return spec.share(int(broken.sum()), len(short), f"robust at {short.norm} {at}, and broken by PGD within {within}:")


def nearest_in_l2(spec: CheckSpec, context: Context) -> Check:
    """5: DDN, and NearestL2 on what it leaves, break all but a few examples half way to another class."""
    within = rounded_up(context.half_way, "l2")
    few = context.few.first(_MOST_IN_L2 if context.full else max(FEWEST, len(context.few) // QUICK_SHARE_IN_L2))
    left = few
    for attack in (DDN(), NearestL2()):
        if len(left):
            found = left.run(attack)
            left = left.part(~(found.success & (found.distance <= within)))
    return robust_half_way(spec, context, len(left), len(few))


def more_steps(spec: CheckSpec, context: Context) -> Check:
    """6: the attack with twice the steps breaks nothing more."""
    hard = context.hard
    longer: Any = PGD(eps=hard.eps, norm=hard.norm, steps=_MANY_STEPS)
    if any(field.name == "steps" for field in fields(hard.attack)):
        longer = replace(cast(Any, hard.attack), steps=2 * steps_of(hard.attack))
    spec = replace(spec, advice=f"{spec.advice} (steps={longer.steps})")
    return spec.share(hard.breaks(longer), hard.n, f"{longer.name} with {longer.steps} steps breaks in addition")


def more_restarts(spec: CheckSpec, context: Context) -> Check:
    """7: the attack from other starts breaks nothing more."""
    hard = replace(context.hard, seed=context.hard.seed + 1)
    return spec.share(hard.breaks(hard.attack), hard.n, f"{hard.attack.name} from other starts breaks in addition")


def finished(spec: CheckSpec, context: Context) -> Check:
    """8: the loss of the attack no longer rises at its end."""
    few = context.few
    steps = steps_of(few.attack) or _USUAL_STEPS
    last = min(_LAST_STEPS, steps // 4)  # of fewer steps, ten would be most of the way
    if not last:
        return spec.undecided(f"{steps} steps are too few to have an end; give the attack more")
    losses = ascend(few, steps, float(getattr(few.attack, "step_over_eps", RELATIVE_STEP / steps)))
    span = (losses.amax(0) - losses.amin(0)).clamp_min(1e-12)
    best = losses.cummax(0).values
    rises = ((best[-1] - best[-1 - last]) / span).sort().values
    # The lower end of a median's 95 % interval is the order statistic at the 2.5 % quantile of a binomial of one half.
    first = int(len(rises) / 2 - 0.98 * len(rises) ** 0.5)
    low = float(rises[first]) if len(rises) > 5 else 0.0  # fewer examples have no such interval
    found = f"of {steps} steps the last {last} still bring, of the whole rise of the loss, a share of"
    return spec.value(float(rises.median()), found, low=low)


def silent_success(spec: CheckSpec, context: Context) -> Check:
    """11: no example that counts as robust was adversarial at a point that the attack asked the model about."""
    few = context.few
    if attack_view(few.model) is not few.model or is_stochastic(few.model):
        return spec.undecided("the way of the attack cannot be judged on a model with an attack_view() or random draws")
    robust = torch.nonzero(few.robust)[:_WATCHED]  # (r, 1)
    silent = 0
    for one in map(few.part, robust):
        watched = _Watched(few.model, int(one.y))
        silent += int(not bool(one.run(few.attack, watched).success) and watched.misled)
    return spec.share(silent, max(1, len(robust)), "counted as robust, but adversarial on the way of the attack:")


class _Watched(nn.Module):
    """A model that records whether any point it was asked about is adversarial for an example of class `label`."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label, self.misled = model, label, False
        self.rejects = can_reject(model)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        criterion = Criterion(torch.full((len(x),), self.label, device=x.device), rejects=self.rejects)
        self.misled |= bool(criterion.reached(logits.detach()).any())
        return logits


def view_holds(spec: CheckSpec, context: Context) -> Check:
    """12: what is adversarial for the attack view is adversarial for the model."""
    few, view = context.few, attack_view(context.model)
    if is_stochastic(few.model) and not is_stochastic(view):  # of a single draw, votes would decide otherwise
        view = EOT(view, draws_of(few.model))
    found = few.run(few.attack, view)
    text = "adversarial for the attack view, but not for the model:"
    if not bool(found.success.any()):  # a robust model, or a view that has nothing to do with it
        whole = _whole(few)
        found = few.run(replace(few.attack, eps=whole), view)
        text = f"at {few.norm} {whole:.3g} {text}"
    if not bool(found.success.any()):
        nothing = f"nothing misleads the attack view, not even {few.norm} {whole:.3g}: {spec.advice}"
        return spec.check(FAIL, nothing, None, spec.limit)
    broken = few.part(found.success)
    broken.x = found.x_adv[found.success]
    held = broken.with_victim(lambda victim: victim.criterion(broken.y).reached(victim.logits(broken.x)))
    return spec.share(int((~held).sum()), len(held), text)


def gradient_free(spec: CheckSpec, context: Context) -> Check:
    """13: Square breaks nothing that attacks by gradients did not. In the quick profile it spends what is left.

    Some of the examples are drawn at random: where the gradients mislead, so do the steps that choose the hardest.
    """
    hard = context.hard
    drawn = replace(context.right.part(context.right.robust), seed=hard.seed + 1).drawn(len(hard) // _DRAWN_IN)
    drawn = replace(drawn.part(~torch.isin(drawn.index, hard.index)), seed=hard.seed)
    queries = QUERIES
    if context.allowed is not None:
        left = (context.allowed - hard.meter["passes"]) // (votes_of(hard.model) * max(1, len(hard) + len(drawn)))
        queries = min(max(left, QUICK_QUERIES), QUERIES)
    square = Square(eps=hard.eps, norm=hard.norm, queries=queries)
    count = hard.breaks(square)
    check = spec.share(count, hard.n, f"Square with {queries} queries alone breaks")
    if check.status == FAIL or not len(drawn):
        return check
    text = f"Square with {queries} queries alone breaks, of {len(drawn)} examples drawn at random and {len(hard)} hard,"
    by_chance = spec.share(drawn.breaks(square), len(drawn), text)
    return by_chance if by_chance.status == FAIL else check


def black_box(spec: CheckSpec, context: Context) -> Check:
    """14: PGD on another network breaks nothing more."""
    hard = context.hard
    count = hard.breaks(Transfer(PGD(eps=hard.eps, norm=hard.norm), context.other_network))
    return spec.share(count, hard.n, "broken only by examples crafted on another network:")


def ablation(spec: CheckSpec, context: Context) -> Check:
    """17: the same attack breaks the network without its defense. Never fails: that network may be robust itself."""
    few = context.few
    robust = int((~few.run(few.attack, undefended(few.model)).success).sum())
    share = robust / len(few)
    text = f"of the undefended network {robust} of {len(few)} are robust ({100 * share:.3g} %; about 0 expected)"
    if share <= spec.limit:
        return spec.check(PASS, text, share, spec.limit)
    return spec.check(INCONCLUSIVE, f"{text}: {spec.advice}", share, spec.limit)


def from_outside(spec: CheckSpec, context: Context) -> Check:
    """29: NearestL2, which may leave the ball, breaks no robust example within eps.

    The examples are drawn at random: misleading gradients would choose the wrong ones. The share is of all examples
    that are classified correctly, as the limit is in points of the accuracy.
    """
    short, attack = context.short, NearestL2()
    if not context.full:
        short, attack = short.first(max(FEWEST, len(short) // QUICK_SHARE_IN_L2)), _NEAREST_IN_SHORT
    if not len(short):
        return spec.share(0, len(context.right), "robust and broken by NearestL2:")
    found = short.run(attack)
    count = int((found.success & (found.distance <= rounded_up(short.eps, "l2"))).sum())
    represented = round(len(short) * len(context.right) / int(context.right.robust.sum()))
    text = f"broken by NearestL2, of {len(short)} robust examples that stand for {represented}:"
    return spec.share(count, represented, text)


def detector(spec: CheckSpec, context: Context) -> Check:
    """20: an attack on the classifier and the detector together breaks nothing more."""
    few, evaluation, rates = context.few, context.evaluation, _rates(context)
    if "joint" in evaluation.rests_on(norm=few.norm, eps=few.eps):
        robust = float(evaluation.accuracy(attack="joint", norm=few.norm, eps=few.eps))
        return spec.check(PASS, f"{rates}; {robust:.1%} are robust to the joint attack", robust)
    if not context.full:
        return spec.undecided(f"{rates}; add JointAttack to the evaluation (sweep=detector)")
    count = few.breaks(JointAttack(eps=few.eps, norm=few.norm))
    share = count / max(1, few.n)
    if share <= spec.limit:
        return spec.check(PASS, f"{rates}; a joint attack breaks {count} more", share, spec.limit)
    return spec.check(FAIL, f"{rates}; a joint attack breaks {count} of {few.n} more: {spec.advice}", share, spec.limit)


def _rates(context: Context) -> str:
    """Return a phrase: the shares of clean images, misclassified ones too, and of attacked ones that are flagged."""
    few, clean = context.few, context.images[: context.sizes[WIDE]]
    crafted = few.run(Transfer(PGD(eps=few.eps, norm=few.norm), undefended(few.model))).x_adv

    def excess(x: Tensor) -> Tensor:
        @torch.no_grad()
        def look(victim: Victim) -> Tensor:
            return victim.model.detection(x)[1].float()  # type: ignore[operator]

        few.meter["passes"] += len(x)
        found: Tensor = few.with_victim(look)
        return found

    on_clean, on_crafted = excess(clean), excess(crafted)
    alarms, caught = ((scores >= 0).float().mean().item() for scores in (on_clean, on_crafted))
    text = f"flags {alarms:.1%} of clean and {caught:.1%} of grey-box PGD images, AUC {auc(on_clean, on_crafted):.3f}"
    for rate in _RATES:
        threshold = on_clean.quantile(1 - rate)
        text += f", {(on_crafted > threshold).float().mean().item():.1%} at {rate:.0%} false alarms"
    return text


def auc(clean: Tensor, adversarial: Tensor) -> float:
    """Return the area under the ROC curve: how likely an adversarial image scores above a clean one."""
    ordered = clean.sort().values
    below, upper = (torch.searchsorted(ordered, adversarial, right=right).float().mean() for right in (False, True))
    return float((below / len(clean) + upper / len(clean)) / 2)
