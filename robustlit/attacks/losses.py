"""What an attack climbs, and when it has won."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

LOSSES = ("ce", "dlr", "margin")
_HALF = (torch.bfloat16, torch.float16)  # a difference of large logits needs the precision of float32
_Goal = TypeVar("_Goal", bound="Criterion")


@dataclass
class Criterion:
    """Untargeted: any class but the true one. Targeted: the class asked for, and no other.

    Args:
        label: (B,) true classes.
        target: (B,) classes asked for, or None.
        share: 0 asks for the prediction. Above, the wanted classes must have this probability together, whichever comes
            first: for logits that are log shares of the votes of a stochastic model.
        rejects: the last logit is no class but the model's refusal to name one, which is no success.
    """

    label: Tensor
    target: Tensor | None = None
    share: float = 0.0
    rejects: bool = False

    def select(self: _Goal, keep: Tensor) -> _Goal:
        """The criteria of the examples in `keep`."""
        return replace(self, label=self.label[keep], target=None if self.target is None else self.target[keep])

    def toward(self: _Goal, target: Tensor) -> _Goal:
        """The same examples, each with a class (B,) to reach."""
        return replace(self, target=target)

    @property
    def anchor(self) -> Tensor:
        """(B,) the class whose logit the margin is taken to: the true one, or the target."""
        return self.label if self.target is None else self.target

    def classes(self, logits: Tensor) -> int:
        """How many of the columns of `logits` (B, K) are classes."""
        return logits.shape[1] - self.rejects

    def own(self, logits: Tensor) -> Tensor:
        """(B,) the logit to beat: the true class's or, where it is higher, the refusal's; of a target its own."""
        own = logits.gather(1, self.anchor.unsqueeze(1)).squeeze(1)
        return torch.maximum(own, logits[:, -1]) if self.rejects and self.target is None else own

    def others(self, logits: Tensor) -> Tensor:
        """The logits (B, K) with -inf for the anchor and, untargeted, for a refusal: what remains are the rivals."""
        others = logits.scatter(1, self.anchor.unsqueeze(1), -float("inf"))
        if self.rejects and self.target is None:
            others = torch.cat([others[:, :-1], torch.full_like(others[:, -1:], -float("inf"))], 1)
        return others

    def reached(self, logits: Tensor) -> Tensor:
        """(B,) bool: the logits (B, K) classify as the criterion wants. Logits that are not finite never count."""
        if self.share:
            chances = logits.softmax(1)
            anchored = chances.gather(1, self.anchor.unsqueeze(1)).squeeze(1)
            if self.target is None:
                anchored = 1 - anchored - (chances[:, -1] if self.rejects else 0)
            won = anchored >= self.share
        else:
            prediction = logits.argmax(1)
            won = prediction != self.label if self.target is None else prediction == self.target
            if self.rejects:
                won = won & (prediction < logits.shape[1] - 1)
        return won & torch.isfinite(logits).all(1)

    def prediction(self, logits: Tensor, reached: Tensor) -> Tensor:
        """(B,) the class of the highest logit; where the criterion was reached by a `share`, of those that it wants."""
        if not self.share:
            return logits.argmax(1)
        if self.target is not None:
            return torch.where(reached, self.target, logits.argmax(1))
        return torch.where(reached.unsqueeze(1), self.others(logits), logits).argmax(1)

    def margin(self, logits: Tensor) -> Tensor:
        """(B,) positive where the criterion is reached: best other logit less the true one, or target less best other.

        The loss of Carlini and Wagner (2017), their f6 with the sign turned. Of a model that may refuse, the refusal
        counts with the true class.
        """
        if logits.dtype in _HALF:
            logits = logits.float()
        own, others = self.own(logits), self.others(logits).amax(1)
        return others - own if self.target is None else own - others

    def log_odds(self, logits: Tensor) -> Tensor:
        """(B,) the loss that rises towards the criterion: log odds against the true class, or of the target.

        Cross-entropy is softplus of it, so both order points alike and ascend in the same direction. But the gradient
        of cross-entropy fades with confidence: in float32 it turns away beyond a margin of 17 logits and is zero
        beyond 104, where a confident (say, distilled) net would look robust. This one does not fade.
        """
        if logits.dtype in _HALF:
            logits = logits.float()
        own, others = self.own(logits), self.others(logits).logsumexp(1)
        return others - own if self.target is None else own - others

    def dlr(self, logits: Tensor) -> Tensor:
        """(B,) difference of logits ratio: the margin over a spread of the logits, so that no scale can mask it.

        Croce, Hein: Reliable evaluation of adversarial robustness, 2020, arXiv:2003.01690, equations 6 and 7. It needs
        3 classes, targeted 4; with fewer it is the margin.
        """
        if logits.dtype in _HALF:
            logits = logits.float()
        if self.classes(logits) < (3 if self.target is None else 4):
            return self.margin(logits)
        top = logits.topk(3 if self.target is None else 4, dim=1).values
        if self.target is None:
            spread = top[:, 0] - top[:, 2]
            difference = self.margin(logits)
        else:
            spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
            pair = logits.gather(1, torch.stack([self.target, self.label], 1))
            difference = pair[:, 0] - pair[:, 1]
        return difference / (spread + 1e-12)


def loss_for(name: str, criterion: Criterion) -> Callable[[Tensor], Tensor]:
    """The loss, logits (B, K) -> (B,), that rises towards the criterion; `name` is one of LOSSES."""
    return {"ce": criterion.log_odds, "dlr": criterion.dlr, "margin": criterion.margin}[name]
