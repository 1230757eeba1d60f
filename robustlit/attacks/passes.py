"""Count the passes of each example through a model under attack."""

from __future__ import annotations

import torch
from torch import Tensor


class PassCounter:
    """Forward and backward passes per example, and which examples got logits that are not finite.

    `forwards` and `backwards` are (B,) int64. In every method `rows` (b,) gives the examples that a pass was for; None
    means all of them, in order. An example may occur in several rows.

    Every step of an attack runs this, so it takes few operations: a GPU waits for each to be launched.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.forwards, self.backwards = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2))
        self._one = torch.ones((), dtype=torch.int64, device=device)
        self._nan = torch.zeros(batch, device=device)  # NaN where an example had logits that are not finite, else 0

    def forward(self, logits: Tensor, rows: Tensor | None) -> None:
        """Count one forward that gave `logits` (b, K)."""
        _add(self.forwards, rows, self._one)
        _add(self._nan, rows, (logits.detach() * 0).sum(1).to(self._nan.dtype))

    def backward(self, rows: Tensor | None) -> None:
        """Count one backward."""
        _add(self.backwards, rows, self._one)

    def add(self, other: PassCounter, rows: Tensor) -> None:
        """Add the passes, and the logits that were not finite, of the examples `rows` (b,) with another model."""
        _add(self.forwards, rows, other.forwards)
        _add(self.backwards, rows, other.backwards)
        _add(self._nan, rows, other._nan)

    @property
    def finite(self) -> Tensor:
        """(B,) bool, whether all logits of an example were finite."""
        return self._nan == 0


def _add(totals: Tensor, rows: Tensor | None, values: Tensor) -> None:
    """Add `values`, one number or (b,), to the `totals` (B,) at the positions `rows` (b,); None means at all."""
    if rows is None:
        totals.add_(values)
    else:
        totals.index_add_(0, rows, values.expand(len(rows)))
