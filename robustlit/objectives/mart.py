"""MART: adversarial training with more weight on the examples that the net misclassifies."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.checks import check_not_negative
from robustlit.objectives.inner import InnerMaximisation, divergence
from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class MART(InnerMaximisation):
    """Boosted cross-entropy of adversarial inputs + weight * KL(f(x) || f(x_adv)) * (1 - p_y(x)).

    Wang, Zou, Yi, Bailey, Ma, Gu: Improving adversarial robustness requires revisiting misclassified examples, ICLR
    2020 (equation 11). The boosted cross-entropy also lowers the likeliest wrong class.

    Args:
        attack: The inner maximiser of the cross-entropy (FGSM, BIM, MIM or PGD).
        weight: Weight of the divergence, lambda in the paper, at least 0; the authors take 5.
        warmup, eps_scale, attack_in_eval_mode, margin: See `AdversarialTraining`.

    Raises:
        ValueError: A negative weight, and as `AdversarialTraining`.
    """

    attack: GradientAscent
    weight: float = 5.0
    warmup: float = 0.0
    eps_scale: float = 1.0
    attack_in_eval_mode: bool = True
    margin: InitVar[float | None] = None

    def __post_init__(self, margin: float | None) -> None:
        check_not_negative(self.weight, "weight", "; 0 leaves the divergence out")
        self.check(margin)

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of a batch, given its adversarial versions."""
        clean, attacked = classifier(x), classifier(x_adv)
        doubt = 1 - clean.float().softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)  # (B,)
        robust = (divergence(clean, attacked) * doubt).mean()
        return {"loss": boosted_cross_entropy(attacked, y) + self.weight * robust, "logits": attacked}


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the batch of -log p_y - log(1 - p_k), k the likeliest wrong class (equation 8).

    1 - p_k is summed from the other classes' probabilities, so that nothing cancels where p_k is near 1.

    Args:
        logits: (B, K).
        y: (B,) true classes.
    """
    logits = logits.float()
    rival = logits.detach().scatter(1, y.unsqueeze(1), -math.inf).argmax(1, keepdim=True)
    spared = logits.scatter(1, rival, -math.inf).logsumexp(1) - logits.logsumexp(1)
    return F.cross_entropy(logits, y) - spared.mean()
