"""The inputs that a certificate speaks of: a ball around each image, cut to the box [0, 1]."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from robustlit.checks import rounded_up
from robustlit.threat import check_norm, expand

UNIT = 2.0**-24  # the rounding error of float32, relative: half the distance of 1 to the next number


class Region:
    """The points within `eps` of each image that are still images, and linear functions over them.

    Args:
        x: Images (B, ...) in [0, 1]; in float64 every bound is a proof (see `certify.tape`), in float32 an estimate.
        eps: (B,) radius in pixel units.
        norm: "linf" or "l2".

    Attributes:
        low, high: (B, ...) the smallest box around the points.
    """

    def __init__(self, x: Tensor, eps: Tensor, norm: str) -> None:
        self.x, self.norm = x, check_norm(norm)
        # A point that counts as within eps for an attack is one here too.
        self.eps = rounded_up(eps.to(x), norm) if x.dtype == torch.float64 else eps.to(x)
        radius = expand(self.eps, x)
        self.low, self.high = (x - radius).clamp_min(0), (x + radius).clamp_max(1)

    def lower_bounds(self, slopes: Tensor) -> Tensor:
        """Return the minimum (S, B) of linear functions with `slopes` (S, B, ...) over the region, or less."""
        flat = slopes.flatten(2)
        low, high, x = (part.flatten(1) for part in (self.low, self.high, self.x))
        middle, radius, size = (low + high) / 2, (high - low) / 2, flat.abs()
        found = dot(flat, middle) - dot(size, radius)
        if self.norm == "l2":
            found = torch.maximum(found, dot(flat, x) - self.eps * torch.linalg.vector_norm(flat, dim=2))
        if x.dtype == torch.float64:  # the rounding of these sums; a pixel is at most 1
            unit = torch.finfo(x.dtype).eps * (flat.shape[2] + 8)
            found = found - unit * (1 + self.eps) * size.sum(2)
        return found


def dot(slopes: Tensor, values: Tensor) -> Tensor:
    """Return (S, B) of slopes (S, B, ...) and values (B, ...)."""
    return torch.einsum("sbn,bn->sb", flat(slopes, 2), flat(values, 1))


def flat(values: Tensor, start: int) -> Tensor:
    """Return values as (..., n) with `start` dimensions before; of one number for each of these, n is 1."""
    return values.reshape(*values.shape[:start], prod(values.shape[start:]))
