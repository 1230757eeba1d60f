"""The check of a detector: its false alarms and detections, and whether it was attacked together with the net."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlit.attacks import PGD, JointAttack, Transfer
from robustlit.attacks.victim import Victim
from robustlit.classifier import Detecting, undefended
from robustlit.results.evaluation import Evaluation
from robustlit.results.verdict import FAIL, PASS, Check, undecided
from robustlit.verdict.probe import Probe

DETECTOR = "the detector was attacked too"
_SOURCE = "Carlini et al. 2019, arXiv:1902.06705"
_RATES = (0.01, 0.05)


def detector(probe: Probe, evaluation: Evaluation, clean: Tensor, full: bool) -> Check | None:
    """20: false alarms and detections, and the joint attack. None for a model without a detector.

    Args:
        probe: rightly classified examples.
        evaluation: what was attacked.
        clean: images (N, ...) of the evaluation, right or wrong: a rejected clean image is an error.
        full: attack the detector here if the evaluation has not.
    """
    model = probe.model
    if not isinstance(model, Detecting):
        return None
    crafted = probe.run(Transfer(PGD(eps=probe.eps, norm=probe.norm), undefended(model))).x_adv

    def excess(victim: Victim, x: Tensor) -> Tensor:
        with torch.no_grad():
            return victim.model.detection(x)[1].float()  # type: ignore[operator]

    on_clean = probe.with_victim(lambda victim: excess(victim, clean))
    on_crafted = probe.with_victim(lambda victim: excess(victim, crafted))
    probe.meter.passes += len(clean) + len(crafted)
    alarms, caught = ((scores >= 0).float().mean().item() for scores in (on_clean, on_crafted))
    text = f"flags {alarms:.1%} of clean and {caught:.1%} of grey-box PGD images, AUC {auc(on_clean, on_crafted):.3f}"
    for rate in _RATES:
        threshold = on_clean.quantile(1 - rate)
        text += f", {(on_crafted > threshold).float().mean().item():.1%} at {rate:.0%} false alarms"
    if "joint" in evaluation.rests_on(norm=probe.norm, eps=probe.eps):
        standing = float(evaluation.accuracy(attack="joint", norm=probe.norm, eps=probe.eps))
        return Check(20, DETECTOR, PASS, f"{text}; {standing:.1%} stand the joint attack", standing, None, _SOURCE)
    if not full:
        return undecided(20, DETECTOR, f"{text}; add JointAttack to the evaluation (sweep=detector)", _SOURCE)
    count = probe.breaks(JointAttack(eps=probe.eps, norm=probe.norm))
    share = count / max(1, probe.n)
    if share <= 0.005:
        return Check(20, DETECTOR, PASS, f"{text}; a joint attack breaks {count} more", share, 0.005, _SOURCE)
    return Check(
        20, DETECTOR, FAIL, f"{text}; a joint attack breaks {count} of {probe.n} more: evaluate with sweep=detector",
        share, 0.005, _SOURCE,
    )  # fmt: skip


def auc(clean: Tensor, adversarial: Tensor) -> float:
    """Area under the ROC curve: how likely an adversarial image scores above a clean one."""
    order = torch.searchsorted(clean.sort().values, adversarial)
    below = order.float().mean() / len(clean)
    upper = torch.searchsorted(clean.sort().values, adversarial, right=True).float().mean() / len(clean)
    return float((below + upper) / 2)
