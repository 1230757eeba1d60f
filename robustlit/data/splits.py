"""Stratified parts of a split, from a size to indices."""

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
