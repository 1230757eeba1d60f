"""Linear bounds of a convolution's results, each taken back through the part of the image that it sees alone."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlit.certify.activations import Activation
from robustlit.certify.ops import Affine
from robustlit.certify.region import dot
from robustlit.certify.tape import Node, Tape

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """A window in a layer's plane for each of `count` (rows, columns) results: place i begins at `step` i + `start`."""

    count: Pair
    step: Pair = (1, 1)
    start: Pair = (0, 0)
    size: Pair = (1, 1)

    def before(self, op: Affine) -> Windows:
        """Return the windows in the input of a convolution that these windows of its result depend on."""
        if op.geometry is None:
            return self
        kernel, stride, padding, dilation, _ = op.geometry
        return Windows(
            self.count,
            (self.step[0] * stride[0], self.step[1] * stride[1]),
            (self.start[0] * stride[0] - padding[0], self.start[1] * stride[1] - padding[1]),
            tuple(
                (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(self.size, stride, dilation, kernel, strict=True)
            ),  # type: ignore[arg-type]
        )

    def of(self, plane: Tensor) -> Tensor:
        """Return the windows of values (B, C, H, W) as (B * P, C, h, w), with 0 outside the plane."""
        pads: list[int] = []
        for axis in (1, 0):
            end = (self.count[axis] - 1) * self.step[axis] + self.start[axis] + self.size[axis]
            pads += [-self.start[axis], end - plane.shape[axis + 2]]
        padded = F.pad(plane, pads)
        cut = padded.unfold(2, self.size[0], self.step[0]).unfold(3, self.size[1], self.step[1])  # (B, C, P, P, h, w)
        return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, plane.shape[1], *self.size)


def chain_of(node: Node) -> list[tuple[Node, Windows]] | None:
    """Return the nodes from a convolution's result back to the input with their windows; None if one has none."""
    if node.low.ndim != 4:
        return None
    found, windows = [], Windows((node.low.shape[2], node.low.shape[3]))
    while True:
        found.append((node, windows))
        if node.op is None:
            return found
        if isinstance(node.op, Affine) and node.op.is_local:
            windows = windows.before(node.op)
        elif not isinstance(node.op, Activation):
            return None
        (node,) = node.inputs


def numbers_in(chain: list[tuple[Node, Windows]]) -> int:
    """Return the largest number of slopes that a row of every result of a channel has in a layer."""
    most = max(node.low.shape[1] * windows.size[0] * windows.size[1] for node, windows in chain)
    return most * chain[0][1].count[0] * chain[0][1].count[1]


def windowed_bounds(tape: Tape, chain: list[tuple[Node, Windows]], most: int) -> tuple[Tensor, Tensor]:
    """Return linear bounds (B, C, H, W) of all results of a convolution, in pieces of at most `most` numbers."""
    result = chain[0][0].low
    channels = torch.eye(result.shape[1], dtype=result.dtype, device=result.device)
    rows = max(1, most // (2 * len(result) * numbers_in(chain)))
    low, high = [], []
    for piece in channels.split(rows):
        slopes = torch.cat([piece, -piece])[:, None, :, None, None]  # (2 S, 1, C, 1, 1), alike for all windows
        least, negative = _least(tape, chain, slopes).split(len(piece))
        low.append(least)
        high.append(-negative)
    shape = (-1, len(result), *result.shape[2:])
    return torch.cat(low).view(shape).transpose(0, 1), torch.cat(high).view(shape).transpose(0, 1)


def _least(tape: Tape, chain: list[tuple[Node, Windows]], slopes: Tensor) -> Tensor:
    """Return lower bounds (S, B * P); `slopes` are (S, B * P or 1, C, h, w)."""
    count = len(tape.region.x) * chain[0][1].count[0] * chain[0][1].count[1]
    total = slopes.new_zeros(len(slopes), count)
    for node, windows in chain:
        if node.op is None:
            region = copy(tape.region)
            region.x, region.low, region.high = (windows.of(v) for v in (region.x, region.low, region.high))
            region.eps = region.eps.repeat_interleave(count // len(region.eps))
            return total + region.lower_bounds(slopes.expand(-1, count, -1, -1, -1))
        if isinstance(node.op, Activation):
            (below, base), (above, top) = node.op.lines(node.inputs[0].low, node.inputs[0].high, False)
            if node.noise is not None:
                total = total - dot(slopes.abs().expand(-1, count, -1, -1, -1), windows.of(node.noise))
            down, up = slopes.clamp_min(0), slopes.clamp_max(0)
            down, up = (part.expand(-1, count, -1, -1, -1) for part in (down, up))
            total = total + dot(down, windows.of(base)) + dot(up, windows.of(top))
            slopes = (down * windows.of(below)).addcmul_(up, windows.of(above))
            continue
        assert isinstance(node.op, Affine)
        inside = windows.of(torch.ones_like(node.low[:, :1]))
        if not bool((inside == 1).all()):
            slopes = slopes * inside  # what is padded is 0 whatever the image
        if node.noise is not None:
            total = total - dot(slopes.abs().expand(-1, count, -1, -1, -1), windows.of(node.noise))
        if node.op.bias is not None:
            total = total + _sum(slopes * node.op.bias)
        slopes = _before(node.op, slopes)
    raise AssertionError("a chain ends at the input")


def _before(op: Affine, slopes: Tensor) -> Tensor:
    if op.geometry is None:
        return slopes if op.weight is None else slopes * op.weight
    _, stride, _, dilation, groups = op.geometry
    assert op.weight is not None

    def transposed(rows: Tensor) -> Tensor:
        return F.conv_transpose2d(rows, op.weight, None, stride, 0, 0, groups, dilation)  # type: ignore[arg-type]

    # As one matrix: there are many windows, which are small.
    numbers = slopes[0, 0].numel()
    every = transposed(torch.eye(numbers, dtype=slopes.dtype, device=slopes.device).view(-1, *slopes.shape[2:]))
    return (slopes.flatten(2) @ every.flatten(1)).view(*slopes.shape[:2], *every.shape[1:])


def _sum(products: Tensor) -> Tensor:
    return products.flatten(2).sum(2)
