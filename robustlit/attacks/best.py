"""What a search has found: `Best` within a budget, `Nearest` for attacks that minimise a distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlit.attacks.active import Active
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.threat import distance, expand

Loss = Callable[[Criterion, Tensor], Tensor]  # criterion, logits (b, K) -> (b,), e.g. Criterion.margin


class Best:
    """The first adversarial example found of each image (B, ...), and until there is one the point of highest score.

    Attributes:
        points: (B, ...), the images themselves until something is recorded.
        scores: (B,), -inf until something is recorded.
        success: (B,) bool.
    """

    def __init__(self, x: Tensor) -> None:
        self.points = x.clone()
        self.scores = x.new_full((len(x),), -float("inf"))
        self.success = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    @property
    def unbroken(self) -> Tensor:
        """Positions (u,) of the examples without success."""
        return torch.nonzero(~self.success).squeeze(1)

    def record(self, at: Tensor, z: Tensor, reached: Tensor, scores: Tensor) -> None:
        """Record the points `z` (b, ...) of the examples `at` (b,) that succeed, or score higher than any before."""
        self._put(at, z, reached, scores, reached | (scores.to(self.scores.dtype) > self.scores[at]))

    def record_success(self, at: Tensor, z: Tensor, reached: Tensor, scores: Tensor) -> None:
        """Record points that succeed. For starts: a failed attack returns a point that it has climbed to."""
        self._put(at, z, reached, scores, reached)

    def _put(self, at: Tensor, z: Tensor, reached: Tensor, scores: Tensor, better: Tensor) -> None:
        better = better & ~self.success[at]
        self.points[at] = torch.where(expand(better, z), z, self.points[at])
        self.scores[at] = torch.where(better, scores.to(self.scores.dtype), self.scores[at])
        self.success[at] |= reached

    def judge(self, victim: Victim, active: Active, loss: Loss = Criterion.margin) -> Tensor:
        """Record the current points as the model itself classifies them. Return (b,) bool, which of them succeed."""
        if not len(active.at):
            return active.at.bool()
        votes, logits = victim.judge(active.z, active.rows)
        reached = active.criterion.reached(votes)
        self.record(active.at, active.z, reached, loss(active.criterion, logits))
        return reached


class Nearest:
    """The nearest adversarial example of each clean image (B, ...); until there is one, the attempt of highest margin.

    Attributes:
        points: (B, ...).
        distances: (B,) of the adversarial examples; infinite where there is none.
        margins: (B,) highest margins of the attempts.
    """

    def __init__(self, x: Tensor, norm: str) -> None:
        self.x, self.norm, self.points = x, norm, x.clone()
        self.distances = x.new_full((len(x),), float("inf"))
        self.margins = torch.full_like(self.distances, -float("inf"))

    @property
    def found(self) -> Tensor:
        """(B,) bool, which images have an adversarial example."""
        return self.distances.isfinite()

    def record(self, z: Tensor, reached: Tensor, margins: Tensor, at: Tensor | None = None) -> None:
        """Record a point (b, ...), its success and its margin for each image at positions `at` (b,); None: for all."""
        here: Tensor | slice = slice(None) if at is None else at
        distances, found = distance(z, self.x[here], self.norm), self.found[here]
        nearer = reached & (distances < self.distances[here])
        closer = ~found & ~reached & (margins > self.margins[here])
        self.points[here] = torch.where(expand(nearer | closer, z), z, self.points[here])
        self.distances[here] = torch.where(nearer, distances, self.distances[here])
        self.margins[here] = torch.where(closer, margins.to(self.margins.dtype), self.margins[here])

    def select(self, at: Tensor) -> Nearest:
        """Return a copy of what was found of the images at positions `at` (b,)."""
        chosen = Nearest(self.x[at], self.norm)
        chosen.points, chosen.distances, chosen.margins = self.points[at], self.distances[at], self.margins[at]
        return chosen
