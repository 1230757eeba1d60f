"""What an attack climbs, and when it has won."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Goal:
    """Untargeted: any class but the true one. Targeted: the class asked for, and no other.

    Args:
        label: (B,) true classes.
        target: (B,) classes asked for, or None.
    """

    label: Tensor
    target: Tensor | None = None

    def select(self, keep: Tensor) -> Goal:
        """The goals of the examples in `keep`."""
        return Goal(self.label[keep], None if self.target is None else self.target[keep])

    def reached(self, logits: Tensor) -> Tensor:
        """(B,) bool: the logits (B, K) classify as the goal wants. Logits that are not finite never count."""
        prediction = logits.argmax(1)
        won = prediction != self.label if self.target is None else prediction == self.target
        return won & torch.isfinite(logits).all(1)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """(B,) the loss that rises towards the goal: CE of the true class, or minus CE of the target."""
        if logits.dtype in (torch.bfloat16, torch.float16):  # a difference of large logits needs the precision
            logits = logits.float()
        if self.target is None:
            return F.cross_entropy(logits, self.label, reduction="none")
        return -F.cross_entropy(logits, self.target, reduction="none")
