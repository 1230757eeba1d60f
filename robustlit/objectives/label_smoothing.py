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
    It reduces the logits, which weakens attacks on the cross-entropy more than it strengthens the net: judge it by
    margin losses and targeted attacks.

    Args:
        amount: Probability that is spread over all classes, in [0, 1).
        floor: Probability that the true class keeps, in (0, 1]; None means 1 - amount + amount / K. Given, it replaces
            `amount` by the one for which the true class keeps this much, whatever K is.

    Raises:
        ValueError: An amount outside [0, 1), a floor outside (0, 1]; when called, a floor of no more than 1 / K.
    """

    amount: float = 0.1
    floor: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.amount < 1:
            raise ValueError(f"amount must be a probability in [0, 1), got {self.amount}; 0 is plain cross-entropy")
        if self.floor is not None and not 0 < self.floor <= 1:
            raise ValueError(f"floor must be a probability in (0, 1], got {self.floor}; 1 is plain cross-entropy")

    def amount_for(self, classes: int) -> float:
        """Return the probability that is spread over `classes` classes."""
        if self.floor is None:
            return self.amount
        if self.floor * classes <= 1:
            raise ValueError(f"floor={self.floor} is no more than the other of {classes} classes get; raise it")
        return (1 - self.floor) * classes / (classes - 1)

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the mean smoothed cross-entropy of (B, C, H, W) images and (B,) classes."""
        logits = classifier(x)
        smoothing = self.amount_for(logits.shape[1])
        return {"loss": F.cross_entropy(logits, y, label_smoothing=smoothing), "logits": logits}
