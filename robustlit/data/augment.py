"""Random crops and flips of a whole batch at once."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Augment: TypeAlias = Callable[[Tensor, Generator], Tensor]


def crop_and_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Return the usual augmentation of small pictures: shift by up to `padding` pixels, mirror half of them.

    Args:
        padding: Pixels of zeros added on each side before a window of the old size is cut at random; 0 for none.
        flip: Mirror each example left to right with probability one half; off for data where that changes the class.

    Returns:
        A function (x, generator) -> x, float (B, C, H, W), which draws from the CPU generator alone, on every device.

    Raises:
        ValueError: Negative padding.
    """
    if padding < 0:
        raise ValueError(f"padding must be 0 or more pixels, got {padding}; 0 leaves the position as it is")
    return partial(_crop_and_flip, padding=padding, flip=flip)


def keeps_range(augment: Augment) -> bool:
    """Return whether an augmentation is known to leave pixels in [0, 1]."""
    return isinstance(augment, partial) and augment.func is _crop_and_flip


def _crop_and_flip(x: Tensor, generator: Generator, *, padding: int, flip: bool) -> Tensor:
    batch, _, height, width = x.shape
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, batch), generator=generator).to(x.device, non_blocking=True)
        padded = F.pad(x, [padding] * 4)
        # Every window is a view, so that only the chosen ones are copied.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p + 1, 2p + 1, H, W)
        x = windows[torch.arange(batch, device=x.device), :, offsets[0], offsets[1]]  # (B, C, H, W)
    if flip:
        mirrored = torch.randint(2, (batch, 1, 1, 1), generator=generator).to(x.device, non_blocking=True).bool()
        x = torch.where(mirrored, x.flip(3), x)
    return x
