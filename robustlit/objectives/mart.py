"""MART: adversarial training that leans on the examples which the net already gets wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import Criterion
from robustlit.objectives.inner import InnerAttack, divergence
from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class MART:
    """Boosted cross-entropy of adversarial inputs + weight * KL(f(x) || f(x_adv)) * (1 - p_y(x)).

    Wang, Zou, Yi, Bailey, Ma, Gu: Improving adversarial robustness requires revisiting misclassified examples, ICLR
    2020 (equation 11). The boosted cross-entropy also pushes the likeliest wrong class down.

    Args:
        attack: the inner maximiser of the cross-entropy (FGSM, BIM or PGD).
        weight: of the divergence, lambda in the paper, at least 0; the authors take 5.
        warmup: share of the training steps, in [0, 1), over which eps rises linearly from 0.
        margin: the budget trained for is the attack's eps times this; a little above 1 helps at eps itself.
        attack_in_eval_mode: attack with BatchNorm and dropout in eval mode (the default), or as they train.

    Raises:
        ValueError: a negative weight, and as `InnerAttack`.
    """

    attack: GradientAscent
    weight: float = 5.0
    warmup: float = 0.0
    margin: float = 1.0
    attack_in_eval_mode: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and at least 0, got {self.weight}; 0 leaves the divergence out")
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
        """The loss of a batch, given its adversarial versions."""
        clean, attacked = classifier(x), classifier(x_adv)
        doubt = 1 - clean.float().softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)  # (B,)
        robust = (divergence(clean, attacked) * doubt).mean()
        return {"loss": boosted_cross_entropy(attacked, y) + self.weight * robust, "logits": attacked}

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """The loss of (B, C, H, W) images and their (B,) classes, and the logits of the adversarial versions."""
        return self.loss_at(classifier, x, self.worst_inputs(classifier, x, y), y)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of -log p_y - log(1 - p_k), k the likeliest wrong class (equation 8 of the paper).

    1 - p_k is summed from the other classes' probabilities, so that nothing cancels where p_k is near 1.

    Args:
        logits: (B, K).
        y: (B,) true classes.
    """
    logits = logits.float()
    rival = logits.detach().scatter(1, y.unsqueeze(1), -math.inf).argmax(1, keepdim=True)
    spared = logits.scatter(1, rival, -math.inf).logsumexp(1) - logits.logsumexp(1)
    return F.cross_entropy(logits, y) - spared.mean()
