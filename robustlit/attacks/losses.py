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
        share: the probability that the wanted classes must have, beside being predicted. Where logits are log shares of
            the votes of a stochastic model, an attack that stops at a bare majority would often lose the recount.
    """

    label: Tensor
    target: Tensor | None = None
    share: float = 0.0

    def select(self, keep: Tensor) -> Goal:
        """The goals of the examples in `keep`."""
        return Goal(self.label[keep], None if self.target is None else self.target[keep], self.share)

    def toward(self, target: Tensor) -> Goal:
        """The same examples, each with a class (B,) to reach."""
        return Goal(self.label, target, self.share)

    @property
    def anchor(self) -> Tensor:
        """(B,) the class whose logit the margin is taken to: the true one, or the target."""
        return self.label if self.target is None else self.target

    def reached(self, logits: Tensor) -> Tensor:
        """(B,) bool: the logits (B, K) classify as the goal wants. Logits that are not finite never count."""
        prediction = logits.argmax(1)
        won = prediction != self.label if self.target is None else prediction == self.target
        if self.share:
            anchored = logits.softmax(1).gather(1, self.anchor.unsqueeze(1)).squeeze(1)
            won &= (1 - anchored if self.target is None else anchored) >= self.share
        return won & torch.isfinite(logits).all(1)

    def margin(self, logits: Tensor) -> Tensor:
        """(B,) positive where the goal is reached: best other logit less the true one, or target less best other.

        The loss of Carlini and Wagner (2017), their f6 with the sign turned.
        """
        if logits.dtype in _HALF:
            logits = logits.float()
        anchor = self.anchor.unsqueeze(1)
        own = logits.gather(1, anchor).squeeze(1)
        others = logits.scatter(1, anchor, -float("inf")).amax(1)
        return others - own if self.target is None else own - others

    def log_odds(self, logits: Tensor) -> Tensor:
        """(B,) the loss that rises towards the goal: log odds against the true class, or of the target.

        Cross-entropy is softplus of it, so both order points alike and ascend in the same direction. But the gradient
        of cross-entropy fades with confidence: in float32 it turns away beyond a margin of 17 logits and is zero
        beyond 104, where a confident (say, distilled) net would look robust. This one does not fade.
        """
        if logits.dtype in _HALF:
            logits = logits.float()
        anchor = self.anchor.unsqueeze(1)
        own = logits.gather(1, anchor).squeeze(1)
        others = logits.scatter(1, anchor, -float("inf")).logsumexp(1)
        return others - own if self.target is None else own - others
