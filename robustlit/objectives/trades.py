"""TRADES: cross-entropy on clean inputs, and predictions that an attack cannot move far from the clean ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.objectives.inner import InnerAttack, divergence
from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class TRADES:
    """min over weights of CE(f(x), y) + beta * max over the ball of KL(f(x) || f(x_adv)).

    Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan: Theoretically principled trade-off between robustness and accuracy, 2019,
    arXiv:1901.08573 (equation 5). The attack climbs the divergence and never sees the labels; as the divergence has no
    slope at the image itself, an attack without a random start begins at a small Gaussian step from it, as theirs does.

    Args:
        attack: the inner maximiser (FGSM, BIM or PGD).
        beta: weight of the divergence, positive; 1 on MNIST and 6 on CIFAR in the authors' code.
        warmup: share of the training steps, in [0, 1), over which eps rises linearly from 0.
        margin: the budget trained for is the attack's eps times this; a little above 1 helps at eps itself.
        attack_in_eval_mode: attack with BatchNorm and dropout in eval mode (the default), or as they train.
        start_noise: deviation of the Gaussian start in pixel units; unused where the attack starts at random itself.

    Raises:
        ValueError: beta not positive, and as `InnerAttack`.
    """

    attack: GradientAscent
    beta: float = 6.0
    warmup: float = 0.0
    margin: float = 1.0
    attack_in_eval_mode: bool = True
    start_noise: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be positive and finite, got {self.beta}; Standard() is beta = 0")
        self._inner = InnerAttack(self.attack, self.warmup, self.margin, self.attack_in_eval_mode, self.start_noise)

    @property
    def eps(self) -> float:
        """The budget of the next step, in pixel units."""
        return self._inner.eps

    def set_progress(self, fraction: float) -> None:
        """`fraction` of the training steps done, in [0, 1]: sets the budget of the next step."""
        self._inner.set_progress(fraction)

    def worst_inputs(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Points (B, C, H, W) of the ball whose predictions are far from the clean ones, detached."""
        return self._inner.maximise(classifier, x, partial(divergence, self._inner.logits(classifier, x)))

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Cross-entropy of the images plus the weighted divergence; gradients flow through both predictions."""
        clean, attacked = classifier(x), classifier(x_adv)
        loss = F.cross_entropy(clean, y) + self.beta * divergence(clean, attacked).mean()
        return {"loss": loss, "logits": attacked}

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """The loss of (B, C, H, W) images and their (B,) classes, and the logits of the adversarial versions."""
        return self.loss_at(classifier, x, self.worst_inputs(classifier, x, y), y)
