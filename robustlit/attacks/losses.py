"""What an attack climbs, and when it has won."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)  # a difference of large logits needs the precision of float32


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

    def log_odds(self, logits: Tensor) -> Tensor:
        """(B,) the loss that rises towards the goal: log odds against the true class, or of the target.

        Cross-entropy is softplus of it, so both order points alike and ascend in the same direction. But the gradient
        of cross-entropy fades with confidence: in float32 it turns away beyond a margin of 17 logits and is zero
        beyond 104, where a confident (say, distilled) net would look robust. This one does not fade.
        """
        if logits.dtype in _HALF:
            logits = logits.float()
        wanted = (self.label if self.target is None else self.target).unsqueeze(1)
        own = logits.gather(1, wanted).squeeze(1)
        others = logits.scatter(1, wanted, -float("inf")).logsumexp(1)
        return others - own if self.target is None else own - others
