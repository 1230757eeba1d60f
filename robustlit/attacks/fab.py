"""FAB: steps onto the linearised boundary, drawn back towards the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from robustlit.attacks.attack import Attack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.checks import check_count
from robustlit.threat import Ball, check_eps, distance, expand

_NEWTON = 12  # steps of a projection, which sorts no pixels
_FINAL = 8  # forwards of the final search between the image and the witness


@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary: the nearest adversarial in L-inf or L2, without a step size to tune.

    Croce, Hein: Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020, arXiv:1907.02044.
    Each step takes the nearest linearised boundary, projects the point and the image on it within the box, and goes to
    a mixture of the two; after a success it goes back towards the image.

    Args:
        norm: "linf" or "l2".
        steps: of each run; each costs a backward for each candidate, or one with a target.
        restarts: runs; the first starts at the image, the others at random points no farther than half the witness.
        candidates: classes whose boundaries are looked at, those of highest logit on the clean image.
        alpha_max: the largest share of the image's projection in a step, in [0, 1].
        eta: overshoot, at least 1.
        beta: share of the way that is left after going back from a success, in (0, 1).
        eps: radius of random starts of an example that has no witness, in pixel units.

    Raises:
        ValueError: a hyper-parameter out of range, unknown norm.
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
        for name in ("steps", "restarts", "candidates"):
            check_count(getattr(self, name), name)
        for name, low, high, rule in (
            ("alpha_max", 0.0, 1.0, "in [0, 1]"),
            ("eta", 1.0, 2.0, "in [1, 2]"),
            ("beta", 1e-9, 1 - 1e-9, "in (0, 1)"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
                raise ValueError(f"{name} must be {rule}, got {value!r}")
        check_eps(self.eps, self.norm)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        best, nearest = x.clone(), x.new_full((len(x),), math.inf)
        closest = torch.full_like(nearest, -math.inf)  # margin of the best attempt
        others = None
        if criterion.target is None:
            logits = criterion.others(victim.logits(x, rows))
            others = logits.argsort(dim=1, descending=True)[:, : min(self.candidates, criterion.classes(logits) - 1)]

        def leads(logits: Tensor) -> Tensor:  # (b, k), positive beyond a boundary
            if others is None:
                return criterion.margin(logits).unsqueeze(1)
            return logits.gather(1, others) - criterion.own(logits).unsqueeze(1)

        def judge(z: Tensor, logits: Tensor) -> Tensor:
            nonlocal best, nearest, closest
            reached, margin, far = criterion.reached(logits), criterion.margin(logits), distance(z, x, self.norm)
            closer = nearest.isinf() & ~reached & (margin > closest)
            take = closer | (reached & (far < nearest))
            best = torch.where(expand(take, z), z, best)
            nearest = torch.where(reached & (far < nearest), far, nearest)
            closest = torch.where(closer, margin.to(closest.dtype), closest)
            return reached

        for run in range(self.restarts):
            z = x
            if run:
                z = Ball(x, torch.where(nearest.isinf(), self.eps, nearest) / 2, self.norm).random_point(draws)
            for _ in range(self.steps):
                _, values, gradients = victim.jacobian(z, leads, rows)
                flat = gradients.flatten(2)
                slope = torch.linalg.vector_norm(flat, 1 if self.norm == "linf" else 2, dim=2)  # the dual norm
                which = torch.where(slope > 0, values.abs() / slope, math.inf).nan_to_num(nan=math.inf).argmin(1)
                row = torch.arange(len(x), device=x.device)
                w, value = flat[row, which], values[row, which].nan_to_num(nan=0.0)
                here, clean = z.flatten(1), x.flatten(1)
                level = (w * here).sum(1) - value  # the boundary: w . u = level
                d_here = project_on_plane(here, w, level, self.norm)
                d_clean = project_on_plane(clean, w, level, self.norm)
                far_here, far_clean = (
                    torch.linalg.vector_norm(d, math.inf if self.norm == "linf" else 2, dim=1)
                    for d in (d_here, d_clean)
                )
                share = (far_here / (far_here + far_clean).clamp_min(1e-12)).clamp(max=self.alpha_max).unsqueeze(1)
                mixed = (1 - share) * (here + self.eta * d_here) + share * (clean + self.eta * d_clean)
                z = mixed.clamp(0, 1).view_as(x)
                reached = judge(z, victim.logits(z, rows))
                z = torch.where(expand(reached, z), x + self.beta * (z - x), z)
        low, high = torch.zeros_like(nearest), torch.ones_like(nearest)
        end, won = best.clone(), nearest.isfinite()
        for _ in range(_FINAL):
            middle = (low + high) / 2
            point = x + expand(middle, x) * (end - x)
            reached = judge(point, victim.logits(point, rows))
            low, high = torch.where(reached, low, middle), torch.where(reached & won, middle, high)
        return best


def project_on_plane(points: Tensor, w: Tensor, level: Tensor, norm: str) -> Tensor:
    """The least change, in `norm`, that brings each point onto the plane w . u = level within the box [0, 1].

    Where the plane does not meet the box: the change to the corner nearest to it.

    Args:
        points: (B, D) in [0, 1].
        w: (B, D). Zero moves nothing.
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
