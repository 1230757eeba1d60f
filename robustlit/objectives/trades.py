"""TRADES: cross-entropy on clean inputs, and predictions that an attack cannot move far from the clean ones."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from functools import partial

from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.checks import check_positive
from robustlit.objectives.inner import InnerMaximisation, divergence
from robustlit.objectives.objective import Objective, ObjectiveOutput


@dataclass
class TRADES(InnerMaximisation):
    """min over weights of CE(f(x), y) + beta * max over the ball of KL(f(x) || f(x_adv)).

    Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan: Theoretically principled trade-off between robustness and accuracy, 2019,
    arXiv:1901.08573 (equation 5). The attack maximises the divergence and never sees the labels. The divergence has no
    slope at the image itself, so an attack without a random start begins at a small Gaussian step from it, as theirs.

    Args:
        attack: The inner maximiser (FGSM, BIM, MIM or PGD).
        beta: Weight of the divergence, positive; 1 on MNIST and 6 on CIFAR in the authors' code.
        warmup, eps_scale, attack_in_eval_mode, margin: See `AdversarialTraining`.
        start_noise: Standard deviation of the Gaussian start in pixel units, for an attack without a random start;
            .001 in the authors' code, at eps .3 as at 8/255.
        outer: The objective at the images, such as `SoftLabelEmbedding(matrix)`; None is cross-entropy.

    Raises:
        ValueError: beta not positive, and as `AdversarialTraining`.
    """

    attack: GradientAscent
    beta: float = 6.0
    warmup: float = 0.0
    eps_scale: float = 1.0
    attack_in_eval_mode: bool = True
    start_noise: float = 1e-3
    margin: InitVar[float | None] = None
    outer: Objective | None = None

    def __post_init__(self, margin: float | None) -> None:
        check_positive(self.beta, "beta", "; Standard() is beta = 0")
        self.check(margin)

    def worst_inputs(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return points (B, C, H, W) of the ball whose predictions are far from the clean ones, detached."""
        return self.maximise(classifier, x, partial(divergence, self.attacked_logits(classifier, x)))

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of the images plus the weighted divergence; both predictions have gradients."""
        clean, attacked = self.outer_loss(classifier, x, y), classifier(x_adv)
        loss = clean["loss"] + self.beta * divergence(clean["logits"], attacked).mean()
        return {"loss": loss, "logits": attacked}
