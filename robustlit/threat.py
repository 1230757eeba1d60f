"""Norm, eps and box: the only place that does L-p geometry.

Every tensor is in pixel units: images lie in [0, 1], eps and distances are in the same units.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

NORMS = ("linf", "l2")
TOLERANCE = 1e-6  # float32 rounding of x + eps; a point farther out than eps + TOLERANCE is invalid


class UniformDraws(Protocol):
    """Random numbers per example, see `robustlit.attacks.draws.Draws`."""

    def uniform(self, like: Tensor) -> Tensor: ...

    def normal(self, like: Tensor) -> Tensor: ...


def check_norm(norm: str) -> str:
    """Return `norm` if a budget can be given in it ("linf" or "l2"), else raise a ValueError."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return norm


def check_eps(eps: object, norm: str = "linf", name: str = "eps") -> float:
    """Return `eps` as a float if it is a usable budget (L-inf: in (0, 1]; L2: positive), else raise a ValueError."""
    if isinstance(eps, bool) or not isinstance(eps, Real):
        hint = (
            "; pass one value per example to the call: attack(model, x, y, eps=tensor)"
            if isinstance(eps, Tensor)
            else ""
        )
        raise ValueError(f"{name} must be a number in pixel units, got {eps!r}{hint}")
    value = float(eps)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, in pixel units, got {value:g}")
    if norm == "linf" and value > 1:
        hint = f"; did you mean {value:g}/255?" if value <= 255 else ""
        raise ValueError(f"{name} must be in (0, 1] pixel units, got {value:g}{hint}")
    return value


def check_images(x: Tensor) -> None:
    """Raise a ValueError unless `x` is a float32 or float64 batch, not empty, with every value in [0, 1]."""
    if x.ndim < 2:
        raise ValueError(f"images must be a batch (B, C, H, W) or (B, D), got shape {tuple(x.shape)}")
    if x.shape[0] == 0:
        raise ValueError("the batch is empty: there is no example to attack")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 in [0, 1], got {x.dtype}; for uint8 use x.float() / 255")
    low, high = (float(v) for v in torch.aminmax(x.detach()))  # NaN propagates to both
    if math.isnan(low):
        raise ValueError("images must be finite, found NaN; look at the loader")
    if low < 0 or high > 1:
        raise ValueError(
            f"images must lie in [0, 1], found values in [{low:.4g}, {high:.4g}]; they are most likely normalised "
            "already: drop that transform and put robustlit.models.Normalize(mean, std) inside the model"
        )


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Return the values (B,) shaped to broadcast against `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Return the distance (B,) of each example in `norm` ("l0", "l1", "l2", "linf"). L0 counts changed values."""
    difference = (x_adv - x).flatten(1)
    if norm == "l0":
        return (difference != 0).sum(1).to(x.dtype)
    if norm == "linf":
        return difference.abs().amax(1)  # vector_norm takes seven times as long for this order on a CPU
    order = {"l1": 1, "l2": 2}
    if norm not in order:
        raise ValueError(f"norm must be one of l0, l1, l2, linf, got {norm!r}")
    return torch.linalg.vector_norm(difference, order[norm], dim=1)


@dataclass
class Ball:
    """The points within eps of each example that are still images: an L-p ball, cut to the box [0, 1]."""

    x: Tensor  # (B, ...) images in [0, 1]
    eps: Tensor  # (B,) radius of each in pixel units; 0 leaves only the example itself
    norm: str  # "linf" or "l2"

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if self.norm == "linf":
            radius = expand(self.eps, self.x)
            self._low, self._high = (self.x - radius).clamp_(min=0), (self.x + radius).clamp_(max=1)

    def select(self, keep: Tensor) -> Ball:
        """Return the balls of the examples in `keep` (positions or mask)."""
        chosen = copy(self)
        chosen.x, chosen.eps = self.x[keep], self.eps[keep]
        if self.norm == "linf":
            chosen._low, chosen._high = self._low[keep], self._high[keep]
        return chosen

    def project(self, z: Tensor) -> Tensor:
        """Return the point of the ball nearest to `z`, per example (for L2: nearest in the ball, then in the box)."""
        if self.norm == "linf":
            return z.clamp(self._low, self._high)
        # Clamping to the box after the ball cannot leave the ball: x is in the box, so no coordinate moves away from x.
        delta = z - self.x
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(torch.finfo(z.dtype).tiny)
        return (self.x + delta * expand((self.eps / length).clamp(max=1), z)).clamp_(0, 1)

    def step(self, z: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """Return the points after a projected step of steepest ascent: the direction that raises a linear loss most.

        Args:
            z: Current points (B, ...).
            gradient: Gradient (B, ...) of the loss at `z`; may be overwritten. A zero gradient moves nothing.
            size: Step length (B,) in pixel units.
        """
        if self.norm == "linf":
            return gradient.sign_().mul_(expand(size, z)).add_(z).clamp_(self._low, self._high)
        # Scaled by its largest entry first: the squares of entries below 1e-23 would sum to a norm of zero, and those
        # above 1e19 to infinity. An entry below the smallest normal number has no direction left.
        largest = gradient.flatten(1).abs().amax(1)
        largest = torch.where(largest > torch.finfo(z.dtype).tiny, largest, torch.ones_like(largest))
        unit = gradient.div_(expand(largest, z))
        length = torch.linalg.vector_norm(unit.flatten(1), dim=1).clamp_min(1)  # at least 1 unless the gradient is 0
        return self.project(unit.mul_(expand(size / length, z)).add_(z))

    def random_point(self, draws: UniformDraws, *, in_box: bool = True) -> Tensor:
        """Draw a point uniformly from each ball, then cut it to the box (unless `in_box=False`): PGD's random start."""
        if self.norm == "linf":
            point = self.x + (draws.uniform(self.x) * 2 - 1) * expand(self.eps, self.x)
        else:
            direction = draws.normal(self.x)
            length = torch.linalg.vector_norm(direction.flatten(1), dim=1).clamp_min(torch.finfo(self.x.dtype).tiny)
            # A radius of eps * u^(1/d) makes the point uniform in the ball rather than crowded at its centre.
            radius = self.eps * draws.uniform(length.unsqueeze(1)).squeeze(1).pow(1 / direction[0].numel())
            point = self.x + direction * expand(radius / length, self.x)
        return point.clamp_(0, 1) if in_box else point
