"""Count the passes of each example through a model under attack."""

from __future__ import annotations

import torch
from torch import Tensor


class PassCounter:
    """Forward and backward passes per example, and which examples got logits that are not finite.

    `forwards` and `backwards` are (B,) int64. In every method `rows` (b,) gives the examples that a pass was for; None
    means all of them, in order. An example may occur in several rows.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self._all = torch.arange(batch, device=device)
        self.forwards, self.backwards, self._not_finite = (torch.zeros_like(self._all) for _ in range(3))

    def forward(self, logits: Tensor, rows: Tensor | None) -> None:
        """Count one forward that gave `logits` (b, K)."""
        rows = self._all if rows is None else rows
        self.forwards.index_add_(0, rows, torch.ones_like(rows))
        self._not_finite.index_add_(0, rows, (~logits.detach().isfinite().all(1)).to(torch.int64))

    def backward(self, rows: Tensor | None) -> None:
        """Count one backward."""
        rows = self._all if rows is None else rows
        self.backwards.index_add_(0, rows, torch.ones_like(rows))

    def add(self, other: PassCounter, rows: Tensor) -> None:
        """Add the passes, and the logits that were not finite, of the examples `rows` (b,) with another model."""
        self.forwards.index_add_(0, rows, other.forwards)
        self.backwards.index_add_(0, rows, other.backwards)
        self._not_finite.index_add_(0, rows, (~other.finite).to(torch.int64))

    @property
    def finite(self) -> Tensor:
        """(B,) bool, whether all logits of an example were finite."""
        return self._not_finite == 0
