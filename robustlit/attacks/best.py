"""Best: what a search has found so far, as the model itself judges it."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim


class Best:
    """The first witness of each example, and until there is one the point of highest margin that was judged.

    Args:
        victim: the model that judges.
        x: images (b, ...).
        criterion: what counts as won.
        rows: (b,) which examples of the victim's batch these are.

    Attributes:
        points: (b, ...), the images themselves until others are judged.
        won: (b,) bool.
    """

    def __init__(self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor) -> None:
        self.victim, self.criterion, self.rows = victim, criterion, rows
        self.points = x.clone()
        self.margins = x.new_full((len(x),), -float("inf"))
        self.won = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def judge(self, z: Tensor, which: Tensor) -> Tensor:
        """Lets the model judge the points `z` (k, ...) of the examples `which` (k,); returns who has won, (k,) bool."""
        logits = self.victim.logits(z, self.rows[which])
        criterion = self.criterion.select(which)
        reached, margins = criterion.reached(logits), criterion.margin(logits).to(self.margins.dtype)
        better = ~self.won[which] & (reached | (margins > self.margins[which]))
        self.points[which[better]], self.margins[which[better]] = z[better], margins[better]
        self.won[which] |= reached
        return reached

    def criterion_of_net(self, which: Tensor) -> Criterion:
        """The criteria of the examples `which` (k,) for the logits (k, K) of a net that rejects nothing."""
        criterion = self.criterion.select(which)
        return Criterion(criterion.label, criterion.target)

    @property
    def standing(self) -> Tensor:
        """Who has no witness yet: positions."""
        return torch.nonzero(~self.won).squeeze(1)
