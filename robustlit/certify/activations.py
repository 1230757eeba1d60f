"""Activations: their values on an interval, and the two lines that they lie between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from robustlit.certify.ops import BackwardBounds, Interval, Op, rounding, rounding_error
from robustlit.certify.region import dot

if TYPE_CHECKING:
    from robustlit.certify.tape import Node

Line = tuple[Tensor, Tensor]  # slope and value at 0
# Of a comparison with a number that float32 rounds, relative.
_THRESHOLD = 2.0**-22
_STEEPEST = 4.0  # slope of a line below a jump: steeper ones are valid too, but lose digits


class Activation(Op):
    """A function of each value that never falls, without rounding unless `roundings` says so.

    Linear bounds: Zhang, Weng, Chen, Hsieh, Daniel: Efficient neural network robustness certification with general
    activation functions, 2018, arXiv:1811.00866.
    """

    is_nonlinear = True
    roundings: ClassVar[int] = 0

    def noise(self, inputs: Sequence[Node]) -> Tensor | None:
        if not self.roundings:
            return None
        low, high = self.interval(inputs)
        return rounding(self.roundings) * torch.maximum(low.abs(), high.abs())

    def backward_bounds(self, slopes: Tensor, inputs: Sequence[Node], same_slopes: bool) -> BackwardBounds:
        (below, base), (above, top) = self.lines(inputs[0].low, inputs[0].high, same_slopes)
        down, up = slopes.clamp_min(0), slopes.clamp_max(0)
        return [down * below + up * above], dot(down, base) + dot(up, top)

    @abstractmethod
    def lines(self, low: Tensor, high: Tensor, same_slopes: bool) -> tuple[Line, Line]:
        """Return a line below and a line above the function on [low, high], all of shape (B, ...)."""


@dataclass
class LeakyReLU(Activation):
    """x above 0 and `slope` * x below, with a slope in [0, 1]; 0 is the ReLU."""

    slope: float = 0.0

    def interval(self, inputs: Sequence[Node]) -> Interval:
        return self._value(inputs[0].low), self._value(inputs[0].high)

    def _value(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x) if self.slope else x.clamp_min(0)

    def noise(self, inputs: Sequence[Node]) -> Tensor | None:
        return rounding_error(inputs[0].size, 2) if self.slope else None  # the slope is rounded too

    def unstable(self, low: Tensor, high: Tensor) -> Tensor:
        return (low < 0) & (high > 0)

    def lines(self, low: Tensor, high: Tensor, same_slopes: bool) -> tuple[Line, Line]:
        bottom, top = self._value(low), self._value(high)
        width = (high - low).clamp_min(torch.finfo(low.dtype).tiny)
        chord = torch.where(low >= 0, 1.0, torch.where(high <= 0, self.slope, (top - bottom) / width))
        at_zero = torch.where((low < 0) & (high > 0), top - chord * high, torch.zeros_like(low))
        below = chord if same_slopes else torch.where(high > -low, 1.0, self.slope)
        below = torch.where((low < 0) & (high > 0), below.to(low), chord)
        return (below, torch.zeros_like(low)), (chord, at_zero)


@dataclass
class JumpReLU(Activation):
    """x above `kappa` >= 0, else 0: a ReLU with a jump (Erichson, Yao, Mahoney, 2019, arXiv:1904.03750)."""

    kappa: float

    def interval(self, inputs: Sequence[Node]) -> Interval:
        low, high = inputs[0].low, inputs[0].high
        return low * self._open(low), high * self._maybe(high)

    def _open(self, low: Tensor) -> Tensor:
        return low > self.kappa * (1 + _THRESHOLD)

    def _maybe(self, high: Tensor) -> Tensor:
        return high > self.kappa * (1 - _THRESHOLD)

    def unstable(self, low: Tensor, high: Tensor) -> Tensor:
        return ~self._open(low) & self._maybe(high)

    def lines(self, low: Tensor, high: Tensor, same_slopes: bool) -> tuple[Line, Line]:
        zero, opened, maybe = torch.zeros_like(low), self._open(low), self._maybe(high)
        kappa = self.kappa * (1 + _THRESHOLD)
        # Above: the ReLU's chord, or x itself where it is never negative.
        chord = torch.where(low >= 0, 1.0, high / (high - low).clamp_min(torch.finfo(low.dtype).tiny))
        above, top = chord * maybe, torch.where(low >= 0, zero, -chord * low) * maybe
        # Below: 0, or a line through (kappa, 0) that does not pass x before `high`.
        over = high - kappa
        steep = (high.clamp_min(0) / over.clamp_min(torch.finfo(low.dtype).tiny)).clamp_max(_STEEPEST)
        below = steep * ((over > 0) & (over > kappa - low))
        base = torch.where(opened, zero, -below * kappa)
        return (torch.where(opened, 1.0, below), base), (above, top)


class _Sigmoidal(Activation):
    """A function that is convex below 0 and concave above."""

    roundings = 8

    def value(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def derivative(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def interval(self, inputs: Sequence[Node]) -> Interval:
        return self.value(inputs[0].low), self.value(inputs[0].high)

    def noise(self, inputs: Sequence[Node]) -> Tensor | None:
        return torch.full_like(inputs[0].low, rounding(self.roundings))  # the values lie in [-1, 1]

    def lines(self, low: Tensor, high: Tensor, same_slopes: bool) -> tuple[Line, Line]:
        bottom, top, middle = self.value(low), self.value(high), (low + high) / 2
        flattest = torch.minimum(self.derivative(low), self.derivative(high))  # nowhere is it flatter between them
        width = high - low
        chord = torch.where(width > 1e-6, (top - bottom) / width.clamp_min(1e-6), flattest)
        tangent, at = self.derivative(middle), self.value(middle)
        convex, concave = high <= 0, low >= 0
        # On one side of 0 a chord and a tangent; across it, lines as flat as the flatter end, through the ends.
        below = torch.where(convex, tangent, torch.where(concave & (width > 1e-6), chord, flattest))
        above = torch.where(concave, tangent, torch.where(convex & (width > 1e-6), chord, flattest))
        base = torch.where(convex, at - tangent * middle, bottom - below * low)
        peak = torch.where(concave, at - tangent * middle, top - above * high)
        return (below, base), (above, peak)


class Sigmoid(_Sigmoidal):
    """1 / (1 + exp(-x))."""

    def value(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def derivative(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (1 - x.sigmoid())


class Tanh(_Sigmoidal):
    """tanh(x)."""

    def value(self, x: Tensor) -> Tensor:
        return x.tanh()

    def derivative(self, x: Tensor) -> Tensor:
        return 1 - x.tanh().square()
