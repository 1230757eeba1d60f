"""Random numbers per example, so that what an attack draws does not depend on the batch.

A counter-based generator: number k of example i under seed s is a hash of (s, i, k), by the finaliser of SplitMix64
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). It costs a few integer operations a
number, needs no state on the host, and gives the same bits on every device and for every batch size.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask makes the shift logical.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _mix_of(number: int) -> Tensor:
    return _mix(torch.tensor(number, dtype=torch.int64) + _MIX_1)


class Draws:
    """Per-example random numbers in pixel-shaped tensors.

    Args:
        seed: With a seed, every number is a function of (seed, example index, count of numbers drawn before) alone,
            and the global generators are not used. None draws from the device's generator.
        index: (B,) int64, number of each example in its data set.
    """

    def __init__(self, seed: int | None, index: Tensor) -> None:
        self.seed = seed
        if seed is not None:
            # Any integer, wrapped to a signed 64-bit one.
            signed = (operator.index(seed) + 2**63) % 2**64 - 2**63
            self._key = _mix(_mix(index.to(torch.int64) + _GOLDEN) + signed)  # (B,)
        self._drawn = 0

    def select(self, keep: Tensor) -> Draws:
        """Return the draws of the examples in `keep`; they continue where these are."""
        chosen = Draws(None, keep)
        chosen.seed, chosen._drawn = self.seed, self._drawn
        if self.seed is not None:
            chosen._key = self._key[keep]
        return chosen

    def fork(self, number: int) -> Draws:
        """Return another stream for the same examples. It does not depend on how many numbers were drawn before."""
        other = Draws(None, torch.empty(0))
        other.seed = self.seed
        if self.seed is not None:
            other._key = _mix(self._key ^ _mix_of(number).to(self._key.device))
        return other

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniform numbers in [0, 1) in the shape, dtype and device of `like` (B, ...)."""
        if self.seed is None:
            return torch.rand_like(like)
        numbers = like[0].numel()
        counter = torch.arange(self._drawn, self._drawn + numbers, device=like.device, dtype=torch.int64)
        self._drawn += numbers
        bits = _mix(self._key.unsqueeze(1) + (counter + 1) * _GOLDEN)  # (B, numbers)
        return _shift(bits, 40).to(like.dtype).mul_(2.0**-24).view(like.shape)  # 24 bits fill a float32

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers in the shape, dtype and device of `like` (B, ...)."""
        if self.seed is None:
            return torch.randn_like(like)
        # Box-Muller; 1 - u lies in (0, 1], so the logarithm is finite.
        radius = (1 - self.uniform(like)).log_().mul_(-2).sqrt_()
        return radius.mul_((self.uniform(like) * (2 * math.pi)).cos_())
