"""FAB: steps onto the linearised boundary, drawn back towards the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.active import rivals
from robustlit.attacks.attack import Attack
from robustlit.attacks.best import Nearest
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_counts, check_share, is_number
from robustlit.threat import Ball, check_eps, expand

_NEWTON = 12  # Newton steps of a projection
_FINAL = 8  # forwards at the end of a run, of the search between the image and the adversarial example


@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary: a near adversarial example in L-inf or L2, without a step size to tune.

    Croce, Hein: Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020, arXiv:1907.02044.
    Each step takes the nearest linearised boundary, projects the point and the image on it within the box, and goes to
    a mixture of the two; after a success it goes back towards the image.

    Args:
        norm: "linf" or "l2".
        steps: Steps of each run; each costs a backward for each candidate, or one with a target.
        restarts: Runs; the first starts at the image, the others at random points at most half as far as the nearest
            adversarial example.
        candidates: Number of classes considered, those of highest logit on the clean image.
        alpha_max: Largest share of the image's projection in a step, in [0, 1].
        eta: Overshoot, at least 1.
        beta: Share of the way that is left after going back from a success, in (0, 1).
        eps: Radius of the random starts of an image without adversarial example, in pixel units.

    Raises:
        ValueError: A hyper-parameter out of range, unknown norm.
    """

    name: ClassVar[str] = "fab"
    steps: int = 100
    restarts: int = 1
    candidates: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    eps: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "steps", "restarts", "candidates")
        for name, low, high in (("alpha_max", 0, 1), ("eta", 1, 2)):
            value = getattr(self, name)
            if not is_number(value) or not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")
        check_share(self.beta, "beta")
        check_eps(self.eps, self.norm)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        found, classes = Nearest(x, self.norm), None
        if criterion.target is None:
            classes = rivals(criterion, victim.logits(x, rows))[:, : self.candidates]

        def leads(logits: Tensor) -> Tensor:  # (b, k), positive beyond a boundary
            if classes is None:
                return criterion.margin(logits).unsqueeze(1)
            return logits.gather(1, classes) - criterion.own(logits).unsqueeze(1)

        def judge(z: Tensor, nearest: Nearest) -> Tensor:
            logits = victim.logits(z, rows)
            reached = criterion.reached(logits)
            nearest.record(z, reached, criterion.margin(logits))
            return reached

        for run in range(self.restarts):
            z, mine = x, Nearest(x, self.norm)
            if run:
                near = torch.where(found.distances.isinf(), self.eps, found.distances)
                z = Ball(x, near / 2, self.norm).random_point(draws)
            for _ in range(self.steps):
                _, values, gradients = victim.jacobian(z, leads, rows)
                z = self._step(z, x, values, gradients.flatten(2))
                z = torch.where(expand(judge(z, mine), z), x + self.beta * (z - x), z)
            low, high = torch.zeros_like(mine.distances), torch.ones_like(mine.distances)
            end, success = mine.points.clone(), mine.found
            for _ in range(_FINAL):
                middle = (low + high) / 2
                reached = judge(x + expand(middle, x) * (end - x), mine)
                low, high = torch.where(reached, low, middle), torch.where(reached & success, middle, high)
            found.record(mine.points, mine.found, mine.margins)
        return found.points

    def _step(self, z: Tensor, x: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        """Return the mixture of the projections of points `z` and images `x` (b, ...) on the nearest boundary.

        `values` (b, k) are the leads of the classes at `z`, negative before a boundary, `gradients` (b, k, D) theirs.
        """
        order = math.inf if self.norm == "linf" else 2
        slope = torch.linalg.vector_norm(gradients, 1 if self.norm == "linf" else 2, dim=2)  # the dual norm
        which = torch.where(slope > 0, values.abs() / slope, math.inf).nan_to_num(nan=math.inf).argmin(1)
        row = torch.arange(len(x), device=x.device)
        w, value = gradients[row, which], values[row, which].nan_to_num(nan=0.0)
        here, clean = z.flatten(1), x.flatten(1)
        level = (w * here).sum(1) - value  # the boundary: w . u = level
        d_here, d_clean = (project_on_plane(points, w, level, self.norm) for points in (here, clean))
        far_here, far_clean = (torch.linalg.vector_norm(d, order, dim=1) for d in (d_here, d_clean))
        share = (far_here / (far_here + far_clean).clamp_min(1e-12)).clamp(max=self.alpha_max).unsqueeze(1)
        mixed = (1 - share) * (here + self.eta * d_here) + share * (clean + self.eta * d_clean)
        return mixed.clamp(0, 1).view_as(x).to(x)  # logits may be wider than images


def project_on_plane(points: Tensor, w: Tensor, level: Tensor, norm: str) -> Tensor:
    """Return the least change, in `norm`, that brings each point onto the plane w . u = level within the box [0, 1].

    Where the plane does not meet the box: the change to the corner nearest to it.

    Args:
        points: (B, D) in [0, 1].
        w: Normals (B, D). Zero moves nothing.
        level: (B,).
        norm: "linf" or "l2".
    """
    # The optimum moves every pixel by clamp(t sign(w)) or clamp(t w). How far w . u then rises is concave in t and made
    # of straight pieces, so Newton from below never passes the root and ends on it.
    gap = level - (w * points).sum(1)
    largest = w.abs().amax(1).clamp_min(torch.finfo(w.dtype).tiny)
    up = w * (gap.sign() / largest).unsqueeze(1)
    need = gap.abs() / largest
    toward = up.sign() if norm == "linf" else up
    t = torch.zeros_like(need)
    for _ in range(_NEWTON):
        moved = points + t.unsqueeze(1) * toward
        free = ((toward > 0) & (moved < 1)) | ((toward < 0) & (moved > 0))
        slope = (up * toward * free).sum(1)
        short = need - (up * (moved.clamp(0, 1) - points)).sum(1)
        t = t + torch.where(slope > 0, short.clamp_min(0) / slope, 0.0)  # no slope: every pixel is at its border
    return (points + t.unsqueeze(1) * toward).clamp(0, 1) - points
