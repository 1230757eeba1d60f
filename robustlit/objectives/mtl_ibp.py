"""MTL-IBP: adversarial loss and interval loss in one, for less clean accuracy lost than with intervals alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.losses import Criterion
from robustlit.objectives.ibp import IBPTraining, check_maximiser, proven_loss
from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class MTLIBP(IBPTraining):
    """alpha * (interval loss) + (1 - alpha) * (loss on adversarial examples) + regularisers while eps rises.

    De Palma, Bunel, Dvijotham, Kumar, Stanforth, Lomuscio: Expressive losses for verified robustness via convex
    combinations, 2024, arXiv:2305.13991 (MTL-IBP).

    Args:
        alpha: Weight of the interval loss, in [0, 1]; 1 is `IBPTraining`, 0 adversarial training.
        attack: The inner maximiser (FGSM, BIM, MIM or PGD), run at the budget of the step.
        eps, norm, warmup, eps_scale, regularisation, initialise: See `IBPTraining`; `kappa` is not used.

    Raises:
        ValueError: An argument out of range, or an attack that is no gradient ascent or has another norm.
    """

    alpha: float = 0.5
    attack: GradientAscent = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_maximiser(self.attack, self.norm)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be the weight of the interval loss in [0, 1], got {self.alpha}")

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of (B, C, H, W) images and their (B,) classes, and the logits of the adversarial images."""
        self.prepare(classifier)
        eps = self.largest * self.share
        x_adv = self.attack.maximise(classifier, x, Criterion(y).log_odds, eps=eps, eval_mode=True)
        logits = classifier(x_adv)
        proven, tape = proven_loss(classifier, x, y, eps, self.norm)
        loss = self.alpha * proven + (1 - self.alpha) * F.cross_entropy(logits, y)
        return {"loss": self.regularised(loss, tape), "logits": logits}
