"""MTL-IBP: adversarial loss and interval loss in one, for less clean accuracy lost than with intervals alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.objectives.batch_statistics import logits_and_statistics
from robustlit.objectives.ibp import AttackedIBP, worst_logits
from robustlit.objectives.objective import ObjectiveOutput


@dataclass(kw_only=True)
class MTLIBP(AttackedIBP):
    """alpha * (interval loss) + (1 - alpha) * (loss on adversarial examples) + regularisers while eps rises.

    De Palma, Bunel, Dvijotham, Kumar, Stanforth, Lomuscio: Expressive losses for verified robustness via convex
    combinations, 2024, arXiv:2305.13991 (MTL-IBP).

    Args:
        alpha: Weight of the interval loss, in [0, 1]; 1 is `IBPTraining`, 0 adversarial training.
        attack: The inner maximiser (FGSM, BIM, MIM or PGD), run at the budget of the step.
        eps, norm, warmup, eps_scale, regularisation, initialise, seed: See `IntervalObjective`.

    Raises:
        ValueError: An argument out of range, or an attack that is no gradient ascent or has another norm.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("the interval loss", "alpha")

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of (B, C, H, W) images and their (B,) classes, and the logits of the adversarial images."""
        self.prepare(classifier)
        eps = self.largest * self.share
        x_adv = self.attacked(classifier, x, y, eps)
        logits, statistics = logits_and_statistics(classifier, x_adv, gradient=True)
        worst, tape = worst_logits(classifier, x, y, eps, self.norm, statistics)
        loss = self.alpha * F.cross_entropy(worst, y) + (1 - self.alpha) * F.cross_entropy(logits, y)
        return {"loss": self.regularised(loss, tape), "logits": logits}
