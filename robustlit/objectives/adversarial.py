"""Adversarial training: cross-entropy on the worst inputs that an attack finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import Goal
from robustlit.objectives.objective import ObjectiveOutput
from robustlit.threat import check_eps


@dataclass
class AdversarialTraining:
    """min over weights of the mean of max over the ball of the cross-entropy, on adversarial batches only.

    With `PGD` it is the method of Madry et al., 2018, arXiv:1706.06083 (equation 2.1); with
    `FGSM(random_start=True, step_size=1.25 * eps)` that of Wong, Rice, Kolter, 2020, arXiv:2001.03994, which can
    overfit catastrophically: train it under the callback `CatastrophicOverfitting`.

    Args:
        attack: the inner maximiser (FGSM, BIM or PGD).
        warmup: share of the training steps, in [0, 1), over which eps rises linearly from 0.
        margin: the budget trained for is the attack's eps times this; a little above 1 helps at eps itself.
        attack_in_eval_mode: attack with BatchNorm and dropout in eval mode (the default), or as they train.

    Raises:
        ValueError: warmup outside [0, 1), a margin that leads to no usable eps, an attack that is no gradient ascent
            or has restarts.
    """

    attack: GradientAscent
    warmup: float = 0.0
    margin: float = 1.0
    attack_in_eval_mode: bool = True
    eps: float = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, GradientAscent):
            raise ValueError(f"attack must be FGSM, BIM or PGD, got {type(self.attack).__name__}")
        if getattr(self.attack, "restarts", 1) != 1:
            raise ValueError(f"restarts must be 1 in training, which climbs once a step, got {self.attack!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a share of the training steps in [0, 1), got {self.warmup}")
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin must be a positive factor of eps, got {self.margin}")
        check_eps(self.attack.eps * self.margin, self.attack.norm, name="eps * margin")
        self.eps = self.attack.eps * self.margin

    def set_progress(self, fraction: float) -> None:
        """`fraction` of the training steps done, in [0, 1]: sets the budget of the next step."""
        self.eps = self.attack.eps * self.margin * (min(1.0, fraction / self.warmup) if self.warmup else 1.0)

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Mean cross-entropy of adversarial versions of (B, C, H, W) images against their (B,) classes."""
        climb = Goal(y).log_odds  # the direction of the cross-entropy, without its vanishing gradient
        x_adv = self.attack.maximise(classifier, x, climb, eps=self.eps, eval_mode=self.attack_in_eval_mode)
        logits = classifier(x_adv)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}
