"""The operations of a net, as bounds need them: on intervals, on slopes backwards, and their rounding errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustlit.certify.region import UNIT, flat

if TYPE_CHECKING:
    from robustlit.certify.tape import Node

Interval = tuple[Tensor, Tensor]
Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, Pair, int]  # kernel, stride, padding, dilation and groups of a convolution
BackwardBounds = tuple[list[Tensor], Tensor | float]
_LARGEST = torch.finfo(torch.float32).max
_TINY = 1e-30  # covers results below the smallest normal float32, which may be set to 0


def rounding(count: int) -> float:
    """Return the relative error of a float32 sum of `count` products, in any order, and 1 % more.

    Higham: Accuracy and stability of numerical algorithms, 2002, section 3.1: n u / (1 - n u). The last percent is far
    more than the float64 rounding of the bounds themselves, 2^-29 of this.
    """
    share = count * UNIT
    return 1.01 * share / (1 - share) if share < 0.5 else float("inf")


def rounding_error(size: Tensor, count: int) -> Tensor:
    """Return a bound (B, ...) on the rounding errors of float32 sums.

    Args:
        size: (B, ...) for each sum, the sum of the absolute products.
        count: Number of products in a sum.

    Returns:
        NaN where a sum may overflow float32, so that nothing is proven there.
    """
    found = rounding(count) * size + _TINY
    return torch.where(size * (1 + rounding(count)) < _LARGEST, found, torch.nan)


class Op(ABC):
    """An operation with one or more inputs that are bounded."""

    is_nonlinear = False

    @abstractmethod
    def interval(self, inputs: Sequence[Node]) -> Interval:
        """Return bounds (B, ...) of the exact results for inputs within their bounds."""

    def unstable(self, low: Tensor, high: Tensor) -> Tensor:
        """Return where (B, ...) narrower bounds of the input would narrow the linear bounds of the result."""
        return high > low

    def noise(self, inputs: Sequence[Node]) -> Tensor | None:
        """Return a bound (B, ...) of the rounding error of float32 on any such input; None: it is exact."""
        return None

    @abstractmethod
    def backward_bounds(self, slopes: Tensor, inputs: Sequence[Node], same_slopes: bool) -> BackwardBounds:
        """Return the slopes (S, B, ...) at each input, and a constant (S, B), of a lower bound of `slopes` . result.

        `same_slopes` chooses among the lower lines of an activation, see `activations.Activation.lines`.
        """


@dataclass
class Affine(Op):
    """Jx + b of one input: `call(x, weight, bias)`, where no entry of J is negative if there is no weight.

    `bias` has a shape that broadcasts against results (B, ...). `count` is the number of roundings of a result, 0 where
    values are only moved. `transposed(slopes, shape)` returns J^T slopes
    for slopes (N, ...) and an input of `shape` (N, ...); None differentiates `call`. `reach` bounds the
    sums of absolute products from above if float32 may weight other values than `call` does; None: it may not.
    """

    call: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    weight: Tensor | None = None
    bias: Tensor | None = None
    count: int = 0
    copies: int = 0  # the most results that one input value is copied to; 0: results are sums, or not known
    geometry: Geometry | None = None  # of a convolution
    by_channel: bool = False  # every channel of an image is scaled and shifted
    transposed: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    reach: Callable[[Tensor], Tensor] | None = None

    @property
    def mixes(self) -> bool:
        """Whether results of independent values are not independent."""
        return self.copies != 1

    @property
    def is_local(self) -> bool:
        """Whether a result of an image depends on a window of the input, the same everywhere."""
        return self.by_channel or self.geometry is not None

    def interval(self, inputs: Sequence[Node]) -> Interval:
        (x,) = inputs
        if self.weight is None:
            return self.call(x.low, None, self.bias), self.call(x.high, None, self.bias)
        half = self.weight / 2  # exact, and smaller than what it is multiplied with
        middle = self.call(x.low + x.high, half, self.bias)
        radius = self.call(x.high - x.low, half.abs(), None)
        return middle - radius, middle + radius

    def noise(self, inputs: Sequence[Node]) -> Tensor | None:
        if not self.count:
            return None
        if self.reach is not None:
            return rounding_error(self.reach(inputs[0].size), self.count)
        size = self.call(inputs[0].size, None if self.weight is None else self.weight.abs(), None)
        if self.bias is not None:
            size = size + self.bias.abs()
        return rounding_error(size, self.count)

    def backward_bounds(self, slopes: Tensor, inputs: Sequence[Node], same_slopes: bool) -> BackwardBounds:
        (x,) = inputs
        rows = slopes.flatten(0, 1)
        shape = (len(rows), *x.low.shape[1:])
        constant: Tensor | float = 0.0
        if self.bias is not None:
            constant = flat(slopes * self.bias, 2).sum(2)
        if self.transposed is not None:
            found = self.transposed(rows, shape)
        else:
            start = rows.new_zeros(shape)
            found = torch.func.vjp(lambda v: self.call(v, self.weight, None), start)[1](rows)[0]
        return [found.view(*slopes.shape[:2], *shape[1:])], constant


@dataclass
class Sum(Op):
    """a + b, or a - b with `sign=-1`."""

    sign: int = 1

    def interval(self, inputs: Sequence[Node]) -> Interval:
        a, b = inputs
        return (a.low + b.low, a.high + b.high) if self.sign > 0 else (a.low - b.high, a.high - b.low)

    def noise(self, inputs: Sequence[Node]) -> Tensor:
        return rounding_error(inputs[0].size + inputs[1].size, 1)

    def backward_bounds(self, slopes: Tensor, inputs: Sequence[Node], same_slopes: bool) -> BackwardBounds:
        return [slopes, self.sign * slopes], 0.0


@dataclass
class Cat(Op):
    """Inputs joined along a dimension, not the first."""

    dim: int

    def interval(self, inputs: Sequence[Node]) -> Interval:
        return torch.cat([n.low for n in inputs], self.dim), torch.cat([n.high for n in inputs], self.dim)

    def backward_bounds(self, slopes: Tensor, inputs: Sequence[Node], same_slopes: bool) -> BackwardBounds:
        return list(slopes.split([n.low.shape[self.dim] for n in inputs], self.dim + 1)), 0.0


@dataclass
class MaxPool(Op):
    """`call(x, return_indices)`. Below it lies the input that is largest at its lowest; above, that or a constant."""

    call: Callable[..., Any]
    overlaps: bool
    is_nonlinear = True

    def interval(self, inputs: Sequence[Node]) -> Interval:
        return self.call(inputs[0].low, False), self.call(inputs[0].high, False)

    def backward_bounds(self, slopes: Tensor, inputs: Sequence[Node], same_slopes: bool) -> BackwardBounds:
        (x,) = inputs
        lowest, place = self.call(x.low, True)
        top, place = self.call(x.high, False), place.flatten(2)
        sure = torch.zeros_like(top, dtype=torch.bool)  # the chosen input is the largest, whatever the others are
        if not self.overlaps:
            others = x.high.flatten(2).scatter(2, place, float("-inf")).view_as(x.high)
            sure = self.call(others, False) <= lowest
        down, up = slopes.clamp_min(0), slopes.clamp_max(0)
        constant = (up * top.masked_fill(sure, 0)).flatten(2).sum(2)
        kept = (down + up * sure).flatten(3)
        found = slopes.new_zeros(*slopes.shape[:2], *x.low.flatten(2).shape[1:])
        found = found.scatter_add(3, place.expand(len(slopes), *place.shape), kept)
        return [found.view(*slopes.shape[:2], *x.low.shape[1:])], constant
