"""The batches of a DataLoader, a LightningDataModule or a pair of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]  # images, classes, numbers of the examples


class Batches(NamedTuple):
    """The batches of a data set, how many there are and how many examples; None where that is not known."""

    triples: Iterator[Triple]
    number: int | None
    examples: int | None


def batches_of(data: Any, batch_size: int) -> Batches:
    """Return the batches of `data`, with examples numbered in order where the data give no index.

    Args:
        data: A DataLoader or other iterable of (x, y) or (x, y, index), a pair of tensors (x, y), or a
            LightningDataModule (its test split).
        batch_size: Size of the batches that a pair of tensors is cut into.

    Raises:
        TypeError, ValueError: The data are none of these, or a pair of tensors differs in length.
    """
    if hasattr(data, "test_dataloader"):
        if hasattr(data, "prepare_data"):
            data.prepare_data()
        data.setup("test")
        data = data.test_dataloader()
    if isinstance(data, (tuple, list)) and len(data) == 2 and not all(isinstance(part, (tuple, list)) for part in data):
        x, y = data
        _check_tensors(x, y)
        if len(x) != len(y):
            raise ValueError(f"images and labels must be as many, got {len(x)} and {len(y)}")
        pieces = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        return Batches(_numbered(pieces), len(pieces), len(y))
    if not isinstance(data, Iterable):
        raise ValueError(f"data must be a DataLoader, a pair of tensors or a DataModule, got {type(data).__name__}")
    return Batches(_numbered(data), _length(data), examples_of(data))


def _numbered(batches: Iterable[Any]) -> Iterator[Triple]:
    seen = 0
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(f"a batch must be (x, y) or (x, y, index), got {type(batch).__name__}; collate it to that")
        x, y = batch[0], batch[1]
        _check_tensors(x, y)
        yield x, y, batch[2] if len(batch) > 2 and batch[2] is not None else torch.arange(seen, seen + len(y))
        seen += len(y)


def _check_tensors(x: object, y: object) -> None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        kinds = f"{type(x).__name__} and {type(y).__name__}"
        raise TypeError(f"images and labels must be torch tensors, got {kinds}; convert arrays by torch.from_numpy(x)")


def examples_of(loader: Any) -> int | None:
    """Return how many examples a loader yields in all its processes; None if that is not known."""
    sampler = getattr(loader, "sampler", None)
    return _length(getattr(sampler, "indices", sampler))


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None
