"""The inner maximisation that the adversarial objectives share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn, randn_like

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import LogOdds
from robustlit.attacks.victim import Victim
from robustlit.checks import check_not_negative, check_positive
from robustlit.objectives.objective import Objective, ObjectiveOutput
from robustlit.threat import Ball, check_eps


class InnerMaximisation(ABC):
    """The half of an adversarial objective that does not depend on its loss: an attack within a budget that may rise.

    A subclass is a dataclass with the fields below, calls `check` after its initialisation and defines `loss_at`, see
    `MinMax`.

    Attributes:
        attack: FGSM, BIM, MIM or PGD, without restarts.
        warmup: Share of the training steps, in [0, 1), over which eps rises linearly from 0.
        eps_scale: The budget trained for is the attack's eps times this.
        attack_in_eval_mode: Attack with BatchNorm and dropout in eval mode, or as they train.
        start_noise: Standard deviation, in pixel units, of a Gaussian start for an attack without a random start. A
            loss that is flat at the image needs one. 0 starts at the image.
        outer: What is minimised in place of cross-entropy, None for that.
        eps: The budget of the next step, in pixel units.
    """

    attack: GradientAscent
    warmup: float
    eps_scale: float
    attack_in_eval_mode: bool
    start_noise: float = 0.0
    outer: Objective | None = None
    eps: float

    def check(self, margin: float | None) -> None:
        """Check the fields and set the budget; `margin` is the old name of `eps_scale`.

        Raises:
            ValueError: warmup outside [0, 1), an eps_scale that leads to no usable eps, a negative noise, an attack
                that is no gradient ascent or has restarts.
        """
        if margin is not None:
            text = "margin is now eps_scale; the old name goes with the next release"
            warnings.warn(text, DeprecationWarning, stacklevel=4)
            self.eps_scale = margin
        check_inner_attack(self.attack)
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a share of the training steps in [0, 1), got {self.warmup}")
        check_positive(self.eps_scale, "eps_scale", "; it is a factor of eps")
        check_not_negative(self.start_noise, "start_noise", "; it is in pixel units")
        check_eps(self.attack.eps * self.eps_scale, self.attack.norm, name="eps * eps_scale")
        self.eps = self.attack.eps * self.eps_scale

    def set_progress(self, fraction: float) -> None:
        """Set the budget of the next step; `fraction` in [0, 1] of the training steps are done."""
        self.eps = self.attack.eps * self.eps_scale * (min(1.0, fraction / self.warmup) if self.warmup else 1.0)

    def maximise(self, classifier: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Return points (B, C, H, W) of the ball where `loss`, logits (B, K) -> (B,), is high; detached."""
        start = x
        if self.start_noise and not self.attack.random_start:
            start = (x + self.start_noise * randn_like(x)).clamp_(0, 1)
        found = self.attack.maximise(classifier, start, loss, eps=self.eps, eval_mode=self.attack_in_eval_mode)
        if start is x:
            return found
        return Ball(x, x.new_full((len(x),), self.eps), self.attack.norm).project(found)  # that ball was around start

    def attacked_logits(self, classifier: nn.Module, x: Tensor) -> Tensor:
        """Return logits (B, K) as the attack sees them (its modes, its precision, the attack view), detached."""
        mode = self.attack_in_eval_mode
        with Victim(classifier, x, eval_mode=mode, training=True, draws=1) as victim:
            # Computed with a graph that nothing uses: autocast would reuse weights cast without one in training.
            return victim.view(x.clone()).detach()

    def worst_inputs(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial versions (B, C, H, W) of the images, detached."""
        # The direction of the cross-entropy, without its vanishing gradient.
        return self.maximise(classifier, x, LogOdds(y))

    def outer_loss(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the `outer` objective of inputs (B, C, H, W) and their (B,) classes, by default cross-entropy."""
        if self.outer is not None:
            return self.outer(classifier, x, y)
        logits = classifier(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}

    @abstractmethod
    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of a batch, given its adversarial versions, and the logits of these."""

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of (B, C, H, W) images and their (B,) classes, and the logits of the adversarial versions."""
        return self.loss_at(classifier, x, self.worst_inputs(classifier, x, y), y)


def check_inner_attack(attack: object) -> None:
    """Raise a ValueError unless `attack` is a gradient ascent without restarts, as an inner maximisation must be."""
    if not isinstance(attack, GradientAscent):
        raise ValueError(f"attack must be FGSM, BIM, MIM or PGD, got {type(attack).__name__}")
    if attack.restarts != 1:
        raise ValueError(f"restarts must be 1 in training, which climbs once a step, got {attack!r}")


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence (B,) of the predictions on attacked inputs from those on clean ones.

    Args:
        clean, attacked: Logits (B, K).
    """
    log_p, log_q = clean.float().log_softmax(1), attacked.float().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
