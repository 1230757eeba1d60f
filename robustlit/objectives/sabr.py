"""SABR: the interval loss of a small box around an adversarial example, in place of the whole ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.objectives.batch_statistics import statistics_of
from robustlit.objectives.ibp import AttackedIBP, worst_logits
from robustlit.objectives.objective import ObjectiveOutput


@dataclass(kw_only=True)
class SABR(AttackedIBP):
    """The worst margins that intervals allow within subselection * eps of an adversarial example, and regularisers.

    Mueller, Eckert, Fischer, Vechev: Certified training: small boxes are all you need, 2023, arXiv:2210.04871. The
    attack stays within (1 - subselection) * eps, so that the box lies within the ball. Smaller boxes cost less clean
    accuracy and prove less by intervals alone; certify the net with CROWN.

    Args:
        subselection: Radius of the box as a share of eps, in (0, 1]; 1 is `IBPTraining`. The paper has .6 on MNIST at
            .3, .4 at .1, and less on CIFAR-10.
        attack: The inner maximiser (FGSM, BIM, MIM or PGD); its own eps is not used.
        eps, norm, warmup, eps_scale, regularisation, initialise, seed: See `IntervalObjective`.

    Raises:
        ValueError: An argument out of range, or an attack that is no gradient ascent or has another norm.
    """

    subselection: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.subselection <= 1:
            raise ValueError(f"subselection must be a share of eps in (0, 1], got {self.subselection}")

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of (B, C, H, W) images and their (B,) classes, and the worst logits within the boxes."""
        self.prepare(classifier)
        eps = self.largest * self.share
        reach = (1 - self.subselection) * eps
        centre = self.attacked(classifier, x, y, reach)
        statistics = statistics_of(classifier, centre)
        worst, tape = worst_logits(classifier, centre, y, self.subselection * eps, self.norm, statistics)
        return {"loss": self.regularised(F.cross_entropy(worst, y), tape), "logits": worst.detach()}
