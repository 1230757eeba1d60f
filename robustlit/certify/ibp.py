"""IBP: interval bounds, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.certify.bounds import logits_of, margins_of
from robustlit.certify.certificate import BoundPropagation
from robustlit.certify.region import Region
from robustlit.certify.tape import Tape

PASSES = 3  # forwards of one set of intervals: of the middles, of the radii and of the rounding errors


@dataclass(frozen=True)
class IBP(BoundPropagation):
    """Interval bound propagation: each value's lowest and highest, through one layer after another.

    Gowal et al.: On the effectiveness of interval bound propagation for training verifiably robust models, 2018,
    arXiv:1810.12715. Cheap, and tight only on nets that were trained for it. In L2 the first layer is exact, by the
    norm of each row; from there on values are boxes.

    Args:
        eps, norm, rounds: See `Certificate`.
    """

    name: ClassVar[str] = "ibp"

    def proven(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        margins = interval_margins(model, Region(x.double(), eps, self.norm), y)[0]
        return are_positive(margins, y), torch.full_like(y, PASSES), torch.zeros_like(y)


def interval_margins(model: nn.Module, region: Region, y: Tensor) -> tuple[Tensor, Tape]:
    """Return lower bounds (B, K) of the true class's logit minus each other's (0 at the true class), and the tape.

    They are differentiable with respect to the weights. In float64 they are proofs, in float32 estimates.
    """
    tape, logits = logits_of(model, region)
    return margins_of(tape, logits, y, through_activations=False), tape


def are_positive(margins: Tensor, y: Tensor) -> Tensor:
    """Return whether all margins (B, K) but that of the true class are above 0; NaN is not."""
    others = torch.ones_like(margins, dtype=torch.bool).scatter_(1, y.unsqueeze(1), False)
    return ((margins > 0) | ~others).all(1)
