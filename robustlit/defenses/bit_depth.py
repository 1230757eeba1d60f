"""BitDepth: round the image to few grey levels before classifying it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlit.attacks.bpda import BPDA
from robustlit.classifier import attack_view
from robustlit.defenses.transformed import Transformed


class BitDepth(Transformed):
    """Reduce the colour depth in front of a trained classifier.

    Xu, Evans, Qi: Feature squeezing, NDSS 2018, arXiv:1704.01155. Rounding has no gradient, so an attack on the model
    itself fails; that is gradient masking (Athalye, Carlini, Wagner, 2018, arXiv:1802.00420). `attack_view` rounds
    forward and passes the gradient straight through (BPDA).

    Args:
        net: The classifier, from images (B, C, H, W) in [0, 1] to logits (B, K).
        bits: Bits per channel, 1 to 8.

    Raises:
        ValueError: `bits` is out of range.
    """

    def __init__(self, net: nn.Module, bits: int = 1) -> None:
        super().__init__(net)
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise ValueError(f"bits must be a whole number from 1 to 8, got {bits!r}")
        self.bits = bits

    def squeeze(self, x: Tensor) -> Tensor:
        """Return the images at the reduced depth, in [0, 1]."""
        top = 2**self.bits - 1
        return torch.round(x * top) / top

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of the rounded images."""
        return self.net(self.squeeze(x))

    def attack_view(self) -> nn.Module:
        """Return the same function with the gradient of the identity in place of the rounding's."""
        return nn.Sequential(BPDA(self.squeeze), attack_view(self.net))
