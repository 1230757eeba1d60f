"""Standard training: cross-entropy on clean images."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class Standard:
    """Empirical risk minimisation: the undefended control, with no robustness."""

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the mean cross-entropy of (B, C, H, W) images and (B,) classes."""
        logits = classifier(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}
