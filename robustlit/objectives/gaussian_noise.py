"""Gaussian noise: training for randomized smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.checks import check_positive
from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class GaussianNoise:
    """Cross-entropy on images with Gaussian noise, drawn anew at every step.

    Cohen, Rosenfeld, Kolter: Certified adversarial robustness via randomized smoothing, 2019, arXiv:1902.02918, section
    3.3. The net then answers well under that noise, as `robustlit.defenses.Smoothed` asks it to. The noisy images are
    not cut to [0, 1], as the certificate's are not.

    Args:
        sigma: Standard deviation of the noise in pixel units; that of `Smoothed`.

    Raises:
        ValueError: `sigma` is not positive.
    """

    sigma: float

    def __post_init__(self) -> None:
        check_positive(self.sigma, "sigma", "; it is in pixel units")

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the mean cross-entropy of (B, C, H, W) images with noise and (B,) classes."""
        logits = classifier(x + self.sigma * torch.randn_like(x))
        return {"loss": F.cross_entropy(logits, y), "logits": logits}
