"""Bounds of every layer of a net, found by calling the net on bounds in place of images.

A net is not traced beforehand: `torch.fx` stops at the checks of shapes in `Normalize` and `TimmNet`, and
`torch.export` takes a JumpReLU apart. `Bounds` stands in for an image in the net's own forward: PyTorch hands every
function that is called with it to a `Tape`, which bounds the result and remembers how it came about.

**What is proven.** In float64, that the net as float32 arithmetic computes it, in whatever order it sums, stays within
the bounds for every input of the region. The result of a layer is taken as exact plus an error of at most
`n u / (1 - n u)` times the sum of the absolute products (`ops.rounding`), and the error is one more unknown that the
bounds are taken over. It is 2^29 times the rounding of the bounds' own float64, which the last percent of it covers.
Not covered: fast convolutions (Winograd, FFT), TF32 and half precision. In float32 (training) the bounds are estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustlit.certify.ops import Affine, Op
from robustlit.certify.region import Region, dot
from robustlit.threat import expand


class Node:
    """The result of an operation: bounds `low`, `high` (B, ...), of float32 arithmetic where the tape proves."""

    def __init__(self, number: int, op: Op | None, inputs: tuple[Node, ...], low: Tensor, high: Tensor) -> None:
        self.number, self.op, self.inputs = number, op, inputs
        self.low, self.high = low, high
        self.sphere: Sphere | None = None

    @property
    def size(self) -> Tensor:
        """The largest absolute values (B, ...)."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @cached_property
    def noise(self) -> Tensor | None:
        """The largest rounding errors (B, ...), None for none."""
        return None if self.op is None else self.op.noise(self.inputs)


@dataclass
class Sphere:
    """Values `centre` (B, ...) + `scale` (1, ...) * d with an L2 norm of d of at most eps, up to `noise` (B, ...)."""

    centre: Tensor
    scale: Tensor
    noise: Tensor

    def through(self, op: Affine, noise: Tensor | None) -> Sphere | None:
        """Return what an operation makes of it, if that does not sum values."""
        if not op.copies:
            return None
        weight = None if op.weight is None else op.weight.abs()
        carried = op.call(self.noise, weight, None)
        return Sphere(
            op.call(self.centre, op.weight, op.bias), op.call(self.scale, weight, None) * op.copies**0.5,
            carried if noise is None else carried + noise,
        )  # fmt: skip

    def summed(self, op: Affine, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of the results of an operation with a weight, by the norm of each row."""
        assert op.weight is not None
        middle = op.call(self.centre, op.weight, op.bias)
        norms = op.call(self.scale.square(), op.weight.square(), None).sqrt()
        radius = norms * expand(eps, middle) + op.call(self.noise, op.weight.abs(), None)
        return middle - radius, middle + radius


class Tape:
    """The operations of a net on a region of inputs, with bounds, in the order in which they ran.

    Args:
        region: The inputs.
        refine: Called with the tape, an activation and the node that it is about to be applied to, whose bounds it may
            narrow.
    """

    def __init__(self, region: Region, refine: Callable[[Tape, Op, Node], None] | None = None) -> None:
        self.region, self.refine = region, refine
        self.rows = 0  # linear functions that were taken back, for each example
        self.proves = region.x.dtype == torch.float64
        self.nodes = [Node(0, None, (), region.low, region.high)]
        if region.norm == "l2":
            self.nodes[0].sphere = Sphere(region.x, torch.ones_like(region.x[:1]), torch.zeros_like(region.x))

    def add(self, op: Op, *inputs: Node) -> Node:
        """Return the node of an operation's result."""
        if op.is_nonlinear and self.refine is not None:
            self.refine(self, op, inputs[0])
        node = Node(len(self.nodes), op, inputs, *op.interval(inputs))
        noise = node.noise if self.proves else None
        sphere = inputs[0].sphere
        if sphere is not None and isinstance(op, Affine):
            node.sphere = sphere.through(op, noise)
            if op.mixes and op.weight is not None:
                low, high = sphere.summed(op, self.region.eps)
                node.low, node.high = torch.maximum(node.low, low), torch.minimum(node.high, high)
        if noise is not None:
            node.low, node.high = node.low - noise, node.high + noise
        self.nodes.append(node)
        return node

    def lower_bounds(
        self, node: Node, slopes: Tensor, *, through_activations: bool, same_slopes: bool = False
    ) -> Tensor:
        """Return lower bounds (S, B) of linear functions, `slopes` (S, B, ...), of a node's value.

        Args:
            through_activations: Go back to the input through linear bounds of the activations (CROWN); else stop at the
                last activations before the node, and take their intervals.
            same_slopes: Choose lower lines of ReLUs parallel to the upper ones.
        """
        self.rows += len(slopes) if through_activations else 0
        open_slopes, total = {node.number: slopes}, slopes.new_zeros(slopes.shape[:2])
        while open_slopes:
            at = max(open_slopes)
            here, slope = self.nodes[at], open_slopes.pop(at)
            if here.op is None:
                total = total + self.region.lower_bounds(slope)
            elif here.op.is_nonlinear and not through_activations:
                middle, radius = (here.low + here.high) / 2, (here.high - here.low) / 2
                total = total + dot(slope, middle) - dot(slope.abs(), radius)
            else:
                if self.proves and here.noise is not None:
                    total = total - dot(slope.abs(), here.noise)
                before, constant = here.op.backward_bounds(slope, here.inputs, same_slopes)
                total = total + constant
                for source, each in zip(here.inputs, before, strict=True):
                    known = open_slopes.get(source.number)
                    open_slopes[source.number] = each if known is None else known + each
        return total
