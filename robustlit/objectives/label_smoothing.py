"""Label smoothing: the same small probability for every class. The control of label embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.objectives.objective import ObjectiveOutput


@dataclass
class LabelSmoothing:
    """Cross-entropy against (1 - amount) one-hot + amount / K.

    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception architecture, 2015, arXiv:1512.00567, section 7.
    It squeezes the logits, which weakens attacks on the cross-entropy more than it strengthens the net: judge it by
    margin losses and targeted attacks.

    Args:
        amount: probability that is spread over all classes, in [0, 1).

    Raises:
        ValueError: an amount outside [0, 1).
    """

    amount: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.amount < 1:
            raise ValueError(f"amount must be a probability in [0, 1), got {self.amount}; 0 is plain cross-entropy")

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Mean smoothed cross-entropy of (B, C, H, W) images and (B,) classes."""
        logits = classifier(x)
        return {"loss": F.cross_entropy(logits, y, label_smoothing=self.amount), "logits": logits}
