"""Adversarial training: cross-entropy on the worst inputs that an attack finds."""

from __future__ import annotations

from dataclasses import InitVar, dataclass

from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.objectives.inner import InnerMaximisation
from robustlit.objectives.objective import Objective, ObjectiveOutput


@dataclass
class AdversarialTraining(InnerMaximisation):
    """min over weights of the mean of max over the ball of the cross-entropy, on adversarial batches only.

    With `PGD` it is the method of Madry et al., 2018, arXiv:1706.06083 (equation 2.1); with
    `FGSM(random_start=True, relative_step_size=1.25)` that of Wong, Rice, Kolter, 2020, arXiv:2001.03994, which can
    overfit catastrophically: train it with the callback `CatastrophicOverfitting`.

    Args:
        attack: The inner maximiser (FGSM, BIM, MIM or PGD).
        warmup: Share of the training steps, in [0, 1), over which eps rises linearly from 0.
        eps_scale: The budget trained for is the attack's eps times this; a little above 1 helps at eps itself.
        attack_in_eval_mode: Attack with BatchNorm and dropout in eval mode (the default), or as they train.
        margin: Old name of `eps_scale`.
        outer: The objective at the adversarial versions, such as `SoftLabelEmbedding(matrix)`; None is cross-entropy.

    Raises:
        ValueError: warmup outside [0, 1), an eps_scale that leads to no usable eps, an attack that is no gradient
            ascent or has restarts.
    """

    attack: GradientAscent
    warmup: float = 0.0
    eps_scale: float = 1.0
    attack_in_eval_mode: bool = True
    margin: InitVar[float | None] = None
    outer: Objective | None = None

    def __post_init__(self, margin: float | None) -> None:
        self.check(margin)

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the mean cross-entropy, or the `outer` objective, of the adversarial versions."""
        return self.outer_loss(classifier, x_adv, y)
