"""Norm, eps and box: the only place that does L-p geometry.

Every tensor is in pixel units: images lie in [0, 1], eps and distances are in the same units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from robustlit.checks import check_choice, distinct_budgets, meant_levels

NORMS = ("linf", "l2")
# A projection onto an L2 ball aims so many roundings short of eps: of the norm, the factor, the product and the sum.
_ROUNDINGS = 4


class UniformDraws(Protocol):
    """Random numbers per example, see `robustlit.attacks.draws.Draws`."""

    def uniform(self, like: Tensor) -> Tensor: ...

    def normal(self, like: Tensor) -> Tensor: ...


def check_norm(norm: str) -> str:
    """Return `norm` if a budget can be given in it ("linf" or "l2"), else raise a ValueError."""
    check_choice(norm, "norm", NORMS)
    return norm


def check_eps(eps: object, norm: str = "linf", name: str = "eps") -> float:
    """Return `eps` as a float if it is a usable budget (L-inf: in (0, 1]; L2: positive), else raise a ValueError."""
    if isinstance(eps, bool) or not isinstance(eps, Real):
        hint = "; write it without quotes: 8 / 255" if isinstance(eps, str) else ""
        if isinstance(eps, Tensor):
            hint = "; pass one value per example to the call: attack(model, x, y, eps=tensor)"
        raise ValueError(f"{name} must be a number in pixel units, got {eps!r}{hint}")
    value = float(eps)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, in pixel units, got {value:g}")
    if norm == "linf" and value > 1:
        raise ValueError(f"{name} must be in (0, 1] pixel units, got {value:g}{meant_levels(value)}")
    return value


def check_grid(grid: Mapping[str, float | Sequence[float]] | None) -> dict[str, list[float]]:
    """Return the budgets of each norm, checked, in ascending order, each once.

    Args:
        grid: Norm -> a budget in pixel units, or a list, array or tensor of them. None (`null`) is no norm at all.

    Raises:
        TypeError: It is no mapping.
        ValueError: An unknown norm, or a budget that is not usable, see `check_eps`.
    """
    if grid is not None and not isinstance(grid, Mapping):
        example = 'for example grid={"linf": [0.1, 0.2]}'
        raise TypeError(f"grid must be a mapping from norms to budgets in pixel units, got {grid!r}; {example}")
    each = {check_norm(norm): _listed(given) for norm, given in (grid or {}).items()}
    return {norm: distinct_budgets(check_eps(e, norm, name=f"grid.{norm}") for e in eps) for norm, eps in each.items()}


def _listed(given: Any) -> list[Any]:
    """Return one value, or the values of a list, array or tensor, as a list of plain ones."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(plain, str) or not isinstance(plain, Iterable):
        return [plain]
    return [value.tolist() if hasattr(value, "tolist") else value for value in plain]


def check_images(x: Tensor) -> None:
    """Raise a ValueError unless `x` is a float32 or float64 batch, not empty, with every value in [0, 1]."""
    if x.ndim < 2:
        raise ValueError(f"images must be a batch (B, C, H, W) or (B, D), got shape {tuple(x.shape)}")
    if x.shape[0] == 0:
        raise ValueError("the batch is empty: there is no example to attack")
    if x.dtype in (torch.float16, torch.bfloat16):
        way_out = "give them in float32: x.float() (in training trainer.precision=16-mixed or bf16-mixed)"
        raise ValueError(f"images are in half precision ({x.dtype}), which rounds them; {way_out}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 in [0, 1], got {x.dtype}; for uint8 use x.float() / 255")
    low, high = (float(v) for v in torch.aminmax(x.detach()))  # NaN propagates to both
    if not math.isfinite(low + high):
        raise ValueError(f"images must be finite, in [0, 1], found {_odd(low, high)}; look at the loader")
    if low < 0 or high > 1:
        way_out = (
            "they are most likely normalised already: drop that transform and put robustlit.models.Normalize(mean, "
            "std) inside the model"
        )
        if low >= 0 and 2 < high <= 255:
            way_out = "they are most likely in grey levels of 255: give x / 255"
        raise ValueError(f"images must lie in [0, 1], found values in [{low:.4g}, {high:.4g}]; {way_out}")


def _odd(low: float, high: float) -> str:
    return "NaN" if math.isnan(low) else f"{high if math.isinf(high) else low:g}"


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
    check_choice(norm, "norm", ("l0", "l1", "l2", "linf"))
    # Summed in float64: over the pixels of a large image float32 loses more than the tolerance of a budget.
    return torch.linalg.vector_norm(difference, 1 if norm == "l1" else 2, dim=1, dtype=torch.float64).to(x.dtype)


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
        delta = z - self.x
        return self._moved(delta, self._to_surface(delta).clamp_(max=1))

    def surface(self, direction: Tensor) -> Tensor:
        """Return the point at distance eps from each image along `direction` (B, ...), then cut to the box [0, 1]."""
        if self.norm == "linf":
            length = direction.flatten(1).abs().amax(1).clamp_min(torch.finfo(direction.dtype).tiny)
            return (self.x + direction * expand(self.eps / length, direction)).clamp_(self._low, self._high)
        return self._moved(direction, self._to_surface(direction))

    def _to_surface(self, delta: Tensor) -> Tensor:
        """Return the factor (B,) that brings the L2 norm of `delta` (B, ...) to eps, rounding included."""
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=torch.float64)
        short = 1 - _ROUNDINGS * torch.finfo(delta.dtype).eps
        return (self.eps * short / length.clamp_min(torch.finfo(delta.dtype).tiny)).to(delta.dtype)

    def _moved(self, delta: Tensor, factor: Tensor) -> Tensor:
        """Return x + factor * delta within the box, each value rounded towards x.

        Rounded to nearest, errors that point outwards would add up over the pixels and leave the ball. Cutting to the
        box cannot: x is in the box, so no value moves away from it.
        """
        move = delta * expand(factor, delta)
        z = (self.x + move).clamp_(0, 1)
        return torch.where((z - self.x).abs() > move.abs(), z.nextafter(self.x), z)

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
        length = _length(unit).clamp_min(1)  # at least 1 unless the gradient is 0
        return self.project(unit.mul_(expand(size / length, z)).add_(z))

    def random_point(self, draws: UniformDraws, *, in_box: bool = True) -> Tensor:
        """Draw a point uniformly from each ball, then cut it to the box (unless `in_box=False`): PGD's random start."""
        if self.norm == "linf":
            point = self.x + (draws.uniform(self.x) * 2 - 1) * expand(self.eps, self.x)
            return point.clamp_(0, 1) if in_box else point
        direction = draws.normal(self.x)
        length = _length(direction).clamp_min(torch.finfo(self.x.dtype).tiny)
        # A radius of eps * u^(1/d) makes the point uniform in the ball rather than crowded at its centre.
        radius = self.eps * draws.uniform(length.unsqueeze(1)).squeeze(1).pow(1 / direction[0].numel())
        point = self.x + direction * expand(radius / length, self.x)
        return self.project(point) if in_box else point


def _length(v: Tensor) -> Tensor:
    """Return the L2 norm (B,) of each example, summed in float64: over many pixels float32 loses digits."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1, dtype=torch.float64).to(v.dtype)
