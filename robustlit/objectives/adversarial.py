"""Adversarial training: cross-entropy on the worst inputs that an attack finds."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import Criterion
from robustlit.objectives.inner import InnerAttack
from robustlit.objectives.objective import ObjectiveOutput


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

    def __post_init__(self) -> None:
        self._inner = InnerAttack(self.attack, self.warmup, self.margin, self.attack_in_eval_mode)

    @property
    def eps(self) -> float:
        """The budget of the next step, in pixel units."""
        return self._inner.eps

    def set_progress(self, fraction: float) -> None:
        """`fraction` of the training steps done, in [0, 1]: sets the budget of the next step."""
        self._inner.set_progress(fraction)

    def worst_inputs(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial versions (B, C, H, W) of the images, detached."""
        # The direction of the cross-entropy, without its vanishing gradient.
        return self._inner.maximise(classifier, x, Criterion(y).log_odds)

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Mean cross-entropy of the adversarial versions."""
        logits = classifier(x_adv)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Mean cross-entropy of adversarial versions of (B, C, H, W) images against their (B,) classes."""
        return self.loss_at(classifier, x, self.worst_inputs(classifier, x, y), y)
