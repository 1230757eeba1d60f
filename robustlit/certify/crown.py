"""CROWN: linear bounds of the margins, from the logits back to the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.certify.bounds import NUMBERS, Refine, logits_of, margins_of
from robustlit.certify.certificate import BoundPropagation
from robustlit.certify.ibp import PASSES, are_positive
from robustlit.certify.ops import Affine, Op
from robustlit.certify.region import Region, flat
from robustlit.certify.tape import Node, Tape
from robustlit.certify.windows import chain_of, numbers_in, windowed_bounds


@dataclass(frozen=True)
class CROWNIBP(BoundPropagation):
    """Linear bounds of the margins, with interval bounds of the layers before: K backward passes for an example.

    Zhang et al.: Towards stable and efficient training of verifiably robust neural networks, 2019, arXiv:1906.06316.
    An example counts as proven where intervals alone prove it, or linear bounds with either choice of the lower lines.

    Args:
        eps, norm, rounds: See `Certificate`.
    """

    name: ClassVar[str] = "crown_ibp"

    @property
    def expected_passes(self) -> float:
        return 23.0 * self.rounds  # with 10 classes

    def proven(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _proven(model, Region(x.double(), eps, self.norm), y)


@dataclass(frozen=True)
class CROWN(BoundPropagation):
    """Linear bounds of the margins and of every layer before: as many backward passes as there are unstable units.

    Zhang, Weng, Chen, Hsieh, Daniel: Efficient neural network robustness certification with general activation
    functions, 2018, arXiv:1811.00866. Proven is also what `CROWNIBP` proves, which is tried first because it is cheap.

    Args:
        eps, norm, rounds: See `Certificate`.
    """

    name: ClassVar[str] = "crown"

    @property
    def expected_passes(self) -> float:
        return 1000.0 * self.rounds  # up to several thousand, where intervals decide little

    def proven(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found, forwards, backwards = _proven(model, Region(x.double(), eps, self.norm), y)
        if len(rows := torch.nonzero(~found).squeeze(1)):
            region = Region(x[rows].double(), eps[rows], self.norm)
            found[rows], more, others = _proven(model, region, y[rows], tightened)
            forwards[rows], backwards[rows] = forwards[rows] + more, backwards[rows] + others
        return found, forwards, backwards


def _proven(model: nn.Module, region: Region, y: Tensor, refine: Refine | None = None) -> tuple[Tensor, Tensor, Tensor]:
    tape, logits = logits_of(model, region, refine)
    margins = margins_of(tape, logits, y, through_activations=False)
    for same_slopes in (False, True):
        if bool(are_positive(margins, y).all()):
            break
        # fmax: lines that are not finite take nothing from what intervals prove.
        margins = torch.fmax(margins, margins_of(tape, logits, y, through_activations=True, same_slopes=same_slopes))
    return are_positive(margins, y), torch.full_like(y, PASSES), torch.full_like(y, tape.rows)


def tightened(tape: Tape, op: Op, node: Node) -> None:
    """Narrow the bounds of the units (B, ...) of a node that are unstable at an activation `op`, by linear bounds."""
    if _is_exact(node):
        return
    unstable = flat(op.unstable(node.low, node.high), 1)  # (B, n)
    if not (most := int(unstable.sum(1).max())):
        return
    largest = max(each.low[0].numel() for each in tape.nodes)
    chain = chain_of(node)
    if chain is not None and node.low.shape[1] * numbers_in(chain) < most * largest:
        low, high = windowed_bounds(tape, chain, NUMBERS)
        tape.rows += 2 * unstable.shape[1]
        node.low, node.high = torch.maximum(node.low, low), torch.minimum(node.high, high)
    else:
        at_once = max(1, NUMBERS // (2 * len(unstable) * largest))
        _tighten_rows(tape, node, unstable.int().topk(most, 1).indices, at_once)
    node.high = torch.maximum(node.low, node.high)  # where they cross by rounding


def _tighten_rows(tape: Tape, node: Node, units: Tensor, at_once: int) -> None:
    """Narrow the bounds of some units (B, S) of a node, so many at once."""
    for places in units.T.split(at_once):
        slopes = node.low.new_zeros(len(places), *flat(node.low, 1).shape).scatter_(2, places.unsqueeze(2), 1.0)
        slopes = slopes.view(len(places), *node.low.shape)
        both = tape.lower_bounds(node, torch.cat([slopes, -slopes]), through_activations=True)
        low, negative = both.split(len(places))
        for name, found, better in (("low", low, torch.maximum), ("high", -negative, torch.minimum)):
            values = flat(getattr(node, name), 1)
            values = values.scatter(1, places.T, better(values.gather(1, places.T), found.T))
            setattr(node, name, values.view(node.low.shape))


def _is_exact(node: Node) -> bool:
    """Return whether a node's intervals are as tight as linear bounds: at most one layer that sums lies before it."""
    mixing = 0
    while node.op is not None:
        if node.op.is_nonlinear:
            return mixing == 0  # the activation's own values
        if not isinstance(node.op, Affine):
            return False
        mixing += node.op.mixes
        (node,) = node.inputs
    return mixing <= 1
