"""Normalisation as a layer, so that everything outside the model stays in pixel space."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Shift and scale each channel: `(x - mean) / std`, so that attacks, eps and distances stay in pixel units.

    Args:
        mean: Mean of each channel, in pixel units (images in [0, 1]).
        std: Standard deviation of each channel, in pixel units, above 0.

    Raises:
        ValueError: The lengths differ or are 0, a value is not finite, or a std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"mean and std must have one value per channel, got {len(mean)} and {len(std)} values; write lists of "
                "equal length, e.g. mean=[0.13], std=[0.31]"
            )
        if not all(math.isfinite(value) for value in mean + std):
            raise ValueError(f"mean and std must be finite, got mean={mean}, std={std}; recompute them on the data")
        if min(std) <= 0:
            raise ValueError(
                f"std must be above 0 in every channel, got {std}; for a channel that is constant in the data use 1"
            )
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))  # (1, C, 1, 1)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) pixels in [0, 1]; raise a ValueError for another number of channels."""
        if x.ndim != 4 or x.shape[1] != self.mean.shape[1]:  # broadcasting would turn one channel into three
            raise ValueError(
                f"this model normalises images of shape (B, {self.mean.shape[1]}, H, W), got {tuple(x.shape)}; "
                f"give in_chans, mean and std to match the data"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        mean, std = ([round(float(value), 4) for value in values.flatten()] for values in (self.mean, self.std))
        return f"mean={mean}, std={std}"


def normalization(mean: Sequence[float] | None, std: Sequence[float] | None, in_chans: int) -> nn.Module:
    """Build the first layer of a network with images of `in_chans` channels: `Normalize`, or the identity for None.

    Raises:
        ValueError: One of `mean` and `std` is missing, or their number is not `in_chans`.
    """
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        raise ValueError(f"mean and std go together, got mean={mean}, std={std}; give both, or neither")
    if len(mean) != in_chans:
        raise ValueError(
            f"mean must have one value per channel, got {len(mean)} values for in_chans={in_chans}; null: none"
        )
    return Normalize(mean, std)
