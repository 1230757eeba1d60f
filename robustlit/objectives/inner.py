"""The inner maximisation that the adversarial objectives share: an attack, its budget now, the modes of the net."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.victim import Victim
from robustlit.objectives.objective import ObjectiveOutput
from robustlit.threat import Ball, check_eps


@runtime_checkable
class MinMax(Protocol):
    """An objective in its two halves, so that the inputs can be sought at other weights than the loss is taken at."""

    def worst_inputs(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial versions (B, C, H, W) of the images, detached."""
        ...

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """The loss of a batch, given its adversarial versions."""
        ...


@dataclass
class InnerAttack:
    """Climbs a loss within the budget of the moment.

    Args:
        attack: FGSM, BIM or PGD, without restarts.
        warmup: share of the training steps, in [0, 1), over which eps rises linearly from 0.
        margin: the budget trained for is the attack's eps times this.
        eval_mode: attack with BatchNorm and dropout in eval mode, or as they train.
        start_noise: deviation in pixel units of a Gaussian start, for an attack without a random start of its own; a
            loss that is flat at the image itself needs one. 0 starts at the image.

    Attributes:
        eps: the budget of the next step, in pixel units.

    Raises:
        ValueError: warmup outside [0, 1), a margin that leads to no usable eps, a negative noise, an attack that is no
            gradient ascent or has restarts.
    """

    attack: GradientAscent
    warmup: float = 0.0
    margin: float = 1.0
    eval_mode: bool = True
    start_noise: float = 0.0
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
        if not 0 <= self.start_noise < math.inf:
            raise ValueError(f"start_noise must be at least 0, in pixel units, got {self.start_noise}")
        check_eps(self.attack.eps * self.margin, self.attack.norm, name="eps * margin")
        self.eps = self.attack.eps * self.margin

    def set_progress(self, fraction: float) -> None:
        """`fraction` of the training steps done, in [0, 1]: sets the budget of the next step."""
        self.eps = self.attack.eps * self.margin * (min(1.0, fraction / self.warmup) if self.warmup else 1.0)

    def maximise(self, classifier: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Points (B, C, H, W) of the ball where `loss`, logits (B, K) -> (B,), is high; detached."""
        start = x
        if self.start_noise and not self.attack._random_start:
            start = (x + self.start_noise * torch.randn_like(x)).clamp_(0, 1)
        found = self.attack.maximise(classifier, start, loss, eps=self.eps, eval_mode=self.eval_mode)
        if start is x:
            return found
        return Ball(x, x.new_full((len(x),), self.eps), self.attack.norm).project(found)  # the climb's was around start

    def logits(self, classifier: nn.Module, x: Tensor) -> Tensor:
        """Logits (B, K) as the attack sees them (its modes, its precision, the attack view), detached."""
        with Victim(
            classifier, x, eval_mode=self.eval_mode, ambient_autocast=True, keep_generators=False, draws=1
        ) as victim:
            # With a graph, though nobody uses it: weights that autocast casts without one would be reused in training.
            return victim.view(x.clone()).detach()


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """Kullback-Leibler divergence (B,) of the predictions on clean inputs from those on attacked ones, both logits."""
    log_p, log_q = clean.float().log_softmax(1), attacked.float().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
