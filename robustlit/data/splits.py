"""Stratified parts of a split, from a size to indices."""

import numpy as np
import torch
from torch import Tensor


def check_size(size: int | float, name: str) -> None:
    """Raise a ValueError unless `size` is a number of examples or a fraction."""
    # bool is an int in Python, but val_size=true is a mistake; a YAML file may also hold a string or null.
    number = isinstance(size, int | float) and not isinstance(size, bool)
    if not (number and (0 < size < 1 if isinstance(size, float) else size > 0)):
        raise ValueError(
            f"{name} must be a number of examples (an int of 1 or more) or a fraction in (0, 1), got {size!r}; "
            f"leave {name} out for its default"
        )


def stratified(labels: Tensor, size: int | float, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Divide examples into two parts that both keep the shares of the classes.

    Args:
        labels: int64 (N,).
        size: Examples of the first part, or its fraction of N.
        name: Name of the size, for messages.
        seed: Decides which examples; nothing else does.

    Returns:
        The places in `labels` of the first part and of the rest, each int64, ascending.

    Raises:
        ValueError: A part would have fewer examples than there are classes, or more than there are.
    """
    from sklearn.model_selection import train_test_split  # half a second to import

    check_size(size, name)
    count = round(size * len(labels)) if isinstance(size, float) else size
    everything = torch.arange(len(labels))
    if count == len(labels):
        return everything, everything[:0]
    classes, members = labels.unique(return_counts=True)
    if members.min() < 2:
        raise ValueError(
            f"{name}={size} divides each class in two, but class {int(classes[members.argmin()])} has one example; "
            "add examples to it or leave the class out"
        )
    most = len(labels) - len(classes)
    if not len(classes) <= count <= most:
        raise ValueError(
            f"{name}={size} asks for {count} of {len(labels)} examples of {len(classes)} classes: it must be "
            f"from {len(classes)} to {most}, so that every class is in both parts, or all {len(labels)}"
        )
    first, rest = train_test_split(everything.numpy(), train_size=count, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(first).sort().values, torch.from_numpy(rest).sort().values


def nested(labels: Tensor, size: int | float, name: str, seed: int) -> Tensor:
    """Return the first examples of one fixed order of a split, so that a smaller excerpt lies in every larger one.

    The order goes by decades. The first 10^k examples are a stratified part (see `stratified`) of the first 10^(k+1),
    or of all examples at the top; where that has too few examples of a class, the decade is joined with the one above.
    Within a decade each further example is of the class that is due, so that every excerpt has each class by its share,
    to within one example. Classes of equal size are all present from as many examples as there are classes.

    Args:
        labels, name, seed: As in `stratified`.
        size: How many of the first examples, from 1 to N, or their fraction of N.

    Returns:
        Their places in `labels`, int64, ascending.

    Raises:
        ValueError: More examples than there are.
    """
    check_size(size, name)
    count = max(1, round(size * len(labels))) if isinstance(size, float) else size
    if count > len(labels):
        raise ValueError(
            f"{name}={size} asks for {count} of {len(labels)} examples; ask for fewer, or leave {name} out"
        )
    outer, inner = torch.arange(len(labels)), torch.arange(0)
    for decade in _decades(len(labels)):
        if not _divisible(labels[outer], decade):
            continue
        part = outer[stratified(labels[outer], decade, name, seed)[0]]
        if decade < count:
            inner = part
            break
        outer = part
    return outer if len(outer) == count else _filled(labels, inner, outer, count, seed)


def _decades(count: int) -> list[int]:
    """Return the powers of ten below `count`, the largest first."""
    return [10**k for k in reversed(range(len(str(count)))) if 10**k < count]


def _divisible(labels: Tensor, size: int) -> bool:
    """Return whether `stratified` can take `size` examples."""
    members = labels.unique(return_counts=True)[1]
    return bool(members.min() >= 2) and len(members) <= size <= len(labels) - len(members)


def _filled(labels: Tensor, inner: Tensor, outer: Tensor, count: int, seed: int) -> Tensor:
    """Return `inner` with examples of `outer` added, up to `count`, so that classes keep their shares of all labels.

    Among the classes that have less than their share, the next example is of the one whose share is the first to be a
    whole example more (Tijdeman, "The chairman assignment problem", 1980). Which of its examples is random.
    """
    classes = labels.unique(return_inverse=True)[1].numpy()
    shares = np.bincount(classes) / len(classes)
    free = outer[~torch.isin(outer, inner)].numpy()
    free = free[np.random.RandomState(seed).permutation(len(free))]  # numpy never changes this stream
    has, left = (np.bincount(classes[part], minlength=len(shares)) for part in (inner.numpy(), free))
    most = has + left
    for n in range(len(inner) + 1, count + 1):
        due = (has + 1) / shares  # the size at which its share is one example more than it has
        due[(has >= most) | (has >= n * shares)] += 2 * len(classes)  # has enough
        due[has >= most] = np.inf
        has[np.lexsort((has, due))[0]] += 1
    wanted = has - (most - left)
    added = [free[classes[free] == c][:k] for c, k in enumerate(wanted.tolist()) if k]
    return torch.cat([inner, torch.from_numpy(np.concatenate(added))]).sort().values
