"""Layers that move or repeat values: views, indices, padding, permutations, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlit.certify.bounds import Bounds, Proxy, UnknownLayerError, applied
from robustlit.certify.ops import Affine, Cat


def moved(
    x: Bounds, call: Callable[[Tensor], Tensor], count: int = 0, copies: int = 0,
    reach: Callable[[Tensor], Tensor] | None = None,
) -> Bounds:  # fmt: skip
    """Return `call` of a value: it moves, repeats or averages, with no negative weights; see `Affine`."""
    return applied(Affine(lambda v, w, b: call(v), count=count, copies=copies, reach=reach), x)


def reshaped(x: Bounds, *shape: Any) -> Bounds:
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    if any(isinstance(size, torch.dtype) for size in sizes):
        raise UnknownLayerError(f"a view as {sizes[0]}")
    target = x.node.low.reshape(sizes).shape
    if target[0] != x.shape[0]:
        raise UnknownLayerError(f"a reshape from {tuple(x.shape)} to {tuple(target)} (it mixes examples of the batch)")
    return _shared(x, lambda v: v.reshape(len(v), *target[1:]))


def _shared(x: Bounds, call: Callable[[Tensor], Tensor], copies: int = 1) -> Bounds:
    found = moved(x, call, copies=copies)
    return Bounds(found.tape, found.node, x.views)


def flattened(x: Bounds, start_dim: int = 0, end_dim: int = -1) -> Bounds:
    if start_dim % x.dim() == 0:
        raise UnknownLayerError("a flatten of the batch")
    return _shared(x, lambda v: v.flatten(start_dim, end_dim))


def indexed(x: Bounds, index: Any) -> Bounds:
    first, *others = index if isinstance(index, tuple) and index else (index,)
    whole = isinstance(first, slice) and range(len(x))[first] == range(len(x))
    if not whole and first is not Ellipsis:
        raise UnknownLayerError("an index of the batch")
    if any(isinstance(each, Proxy) for each in others):
        raise UnknownLayerError("an index that depends on the image")
    index = (slice(None) if whole else Ellipsis, *others)  # for any number of examples
    # Two lists of indices with a slice between them move the batch behind them.
    size = prod(x.shape[1:])
    taken = torch.arange(2 * size, device=x.device).view(2, *x.shape[1:])[index]  # of two examples
    if taken.dim() == 0 or len(taken) != 2 or not bool((taken[0] < size).all() and (taken[1] >= size).all()):
        raise UnknownLayerError("an index of the batch")
    return _shared(x, lambda v: v[index], most_copies(taken[0]))


def most_copies(taken: Tensor) -> int:
    """Return the count of the most frequent index in `taken`."""
    return int(taken.flatten().bincount().max()) if taken.numel() else 1


def padded(x: Bounds, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Bounds:
    if mode == "constant" and value:
        raise UnknownLayerError(f"a padding with {value}")
    if len(pad) // 2 >= x.dim():
        raise UnknownLayerError("a padding of the batch")
    return moved(x, lambda v: F.pad(v, pad, mode), copies=int(mode == "constant"))  # the others repeat values


def permuted(x: Bounds, *dims: Any) -> Bounds:
    order = dims if len(dims) > 1 else tuple(dims[0])
    if order[0] != 0:
        raise UnknownLayerError("a permutation of the batch")
    return _shared(x, lambda v: v.permute(order))


def joined(tensors: Sequence[Any], dim: int = 0) -> Bounds:
    if not all(isinstance(each, Bounds) for each in tensors) or dim % tensors[0].dim() == 0:
        raise UnknownLayerError("a cat with constants, or of the batch")
    return applied(Cat(dim % tensors[0].dim()), *tensors)
