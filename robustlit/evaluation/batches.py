"""The batches of a DataLoader, a LightningDataModule or a pair of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustlit.checks import check_count
from robustlit.classifier import default_batch_size

Triple = tuple[Tensor, Tensor, Tensor]  # images, classes, numbers of the examples


class Batches(NamedTuple):
    """The batches of a data set, how many there are and how many examples; None where that is not known."""

    triples: Iterator[Triple]
    number: int | None
    examples: int | None


def batches_of(data: Any, batch_size: int | None = None) -> Batches:
    """Return the batches of `data`, with examples numbered in order where the data give no index.

    Args:
        data: A DataLoader or other iterable of (x, y) or (x, y, index), where the index numbers each example of the
            data once, a pair of tensors (x, y), or a LightningDataModule (its test split).
        batch_size: Size of the batches that a pair of tensors is cut into; None is `default_batch_size`.

    Raises:
        TypeError, ValueError: The data are none of these, a pair of tensors differs in length, numbers repeat, or the
            batch size is not a whole number of at least 1.
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
        if batch_size is None:
            batch_size = default_batch_size(x.shape)
        check_count(batch_size, "batch_size")
        pieces = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        return Batches(_numbered(pieces), len(pieces), len(y))
    if not isinstance(data, Iterable):
        raise ValueError(f"data must be a DataLoader, a pair of tensors or a DataModule, got {type(data).__name__}")
    return Batches(_numbered(data), _length(data), examples_of(data))


def _numbered(batches: Iterable[Any]) -> Iterator[Triple]:
    seen, numbers = 0, set[int]()
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(f"a batch must be (x, y) or (x, y, index), got {type(batch).__name__}; collate it to that")
        x, y = batch[0], batch[1]
        _check_tensors(x, y)
        if len(batch) > 2 and batch[2] is not None:
            check_numbers(batch[2], len(y), numbers)
            yield x, y, batch[2]
        else:
            yield x, y, torch.arange(seen, seen + len(y))
        seen += len(y)


def check_numbers(index: Any, count: int, seen: set[int]) -> None:
    """Raise unless `index`, a batch's third element, numbers its examples; add the numbers to those `seen` before.

    Raises:
        TypeError: It is no tensor of `count` whole numbers.
        ValueError: A number occurs twice: it may be a group or a weight, and examples of one number would be merged.
    """
    way_out = "must number the examples, each once in the whole data; yield (x, y) to have them numbered in order"
    if not isinstance(index, Tensor) or index.shape != (count,) or index.is_floating_point() or index.is_complex():
        what = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"the third element of a batch {way_out}; it must be an integer tensor ({count},), got {what}")
    found = index.tolist()
    if repeated := sorted(seen.intersection(found)) or sorted({n for n in found if found.count(n) > 1}):
        raise ValueError(f"the third element of a batch {way_out}; the number {repeated[0]} occurs twice")
    seen.update(found)


def _check_tensors(x: object, y: object) -> None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        kinds = f"{type(x).__name__} and {type(y).__name__}"
        raise TypeError(f"images and labels must be torch tensors, got {kinds}; convert arrays by torch.from_numpy(x)")


def examples_of(loader: Any) -> int | None:
    """Return how many examples a loader yields in all its processes; None if that is not known."""
    sampler = getattr(loader, "sampler", None)
    return _length(getattr(sampler, "indices", sampler))


def coverage(loader: Any, batches: float, attacked: int, meant: int | None, *, cut: bool) -> dict[str, Any]:
    """Return what an evaluation's meta says of its completeness.

    Args:
        loader, batches: The loader, and how many of its batches were to be attacked.
        attacked, meant: How many images were attacked, of how many; None where the loader tells.
        cut: Whether the sweep was cut short.
    """
    if not cut or attacked == meant:
        return {"complete": True}
    if meant is None:
        examples = examples_of(loader)
        whole = examples is not None and len(loader) == batches  # else a limit hides how many
        meant = examples if whole else None
    return {"complete": False, "meant": meant}


def class_names_of(data: Any) -> dict[str, list[str]]:
    """Return {"class_names": names} where a DataModule, or the data set of a DataLoader, names its classes, else {}."""
    names = getattr(data, "class_names", None)
    if names is None and hasattr(data, "test_dataloader"):
        data = data.test_dataloader()
    while names is None and (data := getattr(data, "dataset", None)) is not None:  # a Subset holds a data set as well
        names = getattr(data, "classes", None)
    return {"class_names": [str(name) for name in names]} if isinstance(names, (list, tuple)) else {}


def split_size(data: Any) -> int | None:
    """Return how many images the test split of a DataModule of robustlit.data has; None of other data."""
    labels_of = getattr(data, "labels_of", None)
    return len(labels_of("test")) if callable(labels_of) else None


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None
