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
TOLERANCE = 1e-6  # float32 rounding of x + eps; a witness farther out than eps + TOLERANCE is invalid


class UniformDraws(Protocol):
    """Random numbers per example, see `robustlit.attacks.draws.Draws`."""

    def uniform(self, like: Tensor) -> Tensor: ...

    def normal(self, like: Tensor) -> Tensor: ...


def check_norm(norm: str) -> str:
    """Returns `norm` if it is one that a budget can be given in ("linf" or "l2"), else raises ValueError."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return norm


def check_eps(eps: object, norm: str = "linf", name: str = "eps") -> float:
    """Returns `eps` as a float if it is a usable budget, else raises a ValueError that says what to write.

    An L-inf budget lies in (0, 1]: images lie in [0, 1], so 1 lets an attacker paint any picture. An L2 budget is
    positive and finite.
    """
    if isinstance(eps, bool) or not isinstance(eps, Real):
        hint = "; pass one value per example to the call: attack(model, x, y, eps=tensor)" if _is_tensor(eps) else ""
        raise ValueError(f"{name} must be a number in pixel units, got {eps!r}{hint}")
    value = float(eps)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, in pixel units, got {value:g}")
    if norm == "linf" and value > 1:
        hint = f"; did you mean {value:g}/255?" if value <= 255 else ""
        raise ValueError(f"{name} must be in (0, 1] pixel units, got {value:g}{hint}")
    return value


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def check_images(x: Tensor) -> None:
    """Raises unless `x` is a float32 or float64 batch of at least one example with every value in [0, 1]."""
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
    """(B,) values shaped to broadcast against (B, ...) `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Distance of each example in `norm` ("l0", "l1", "l2", "linf"): (B,). L0 counts changed values."""
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
    """The points within eps of each example that are still images: an L-p ball, cut to the box [0, 1].

    Args:
        x: images in [0, 1], (B, ...).
        eps: radius of each example in pixel units, (B,); 0 leaves only the example itself.
        norm: "linf" or "l2".
    """

    x: Tensor
    eps: Tensor
    norm: str

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if self.norm == "linf":
            radius = expand(self.eps, self.x)
            self._low, self._high = (self.x - radius).clamp_(min=0), (self.x + radius).clamp_(max=1)

    def select(self, keep: Tensor) -> Ball:
        """The balls of the examples in `keep` (positions or mask)."""
        chosen = copy(self)
        chosen.x, chosen.eps = self.x[keep], self.eps[keep]
        if self.norm == "linf":
            chosen._low, chosen._high = self._low[keep], self._high[keep]
        return chosen

    def project(self, z: Tensor) -> Tensor:
        """The point of the ball nearest to `z`, per example (for L2: nearest in the ball, then in the box)."""
        if self.norm == "linf":
            return z.clamp(self._low, self._high)
        # Clamping to the box after the ball cannot leave the ball: x is in the box, so no coordinate moves away from x.
        delta = z - self.x
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(torch.finfo(z.dtype).tiny)
        return (self.x + delta * expand((self.eps / length).clamp(max=1), z)).clamp_(0, 1)

    def step(self, z: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """One projected step of steepest ascent: the unit-norm direction that raises a linear loss most.

        Args:
            z: current points, (B, ...).
            gradient: gradient of the loss at `z`, (B, ...); may be overwritten. A zero gradient moves nothing.
            size: step length per example in pixel units, (B,).
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
        """A point drawn uniformly from each ball, then cut to the box: the random start of PGD.

        `in_box=False` leaves out the cut: the point may lie outside [0, 1], though never outside the ball.
        """
        point = self._random_point(draws)
        return point.clamp_(0, 1) if in_box else point

    def _random_point(self, draws: UniformDraws) -> Tensor:
        if self.norm == "linf":
            return self.x + (draws.uniform(self.x) * 2 - 1) * expand(self.eps, self.x)
        direction = draws.normal(self.x)
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1).clamp_min(torch.finfo(self.x.dtype).tiny)
        # A radius of eps * u^(1/d) makes the point uniform in the ball rather than crowded at its centre.
        u = draws.uniform(length.unsqueeze(1)).squeeze(1)
        radius = self.eps * u.pow(1 / direction[0].numel())
        return self.x + direction * expand(radius / length, self.x)
