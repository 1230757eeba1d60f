"""Argument checks shared by attacks and networks: each raises a ValueError that names the value and the rule."""

from __future__ import annotations

import math
from numbers import Real


def check_count(value: object, name: str) -> None:
    """Raises a ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_step_size(value: object, norm: str) -> None:
    """Raises a ValueError unless `value` is None or a positive, finite number of pixel units, at most 2 for "linf"."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or float(value) <= 0:
        raise ValueError(f"step_size must be positive, in pixel units, or None for the attack's rule, got {value!r}")
    if norm == "linf" and float(value) >= 2:  # twice the largest ball: most likely 2/255 was meant
        given = f"{float(value):g}"
        raise ValueError(f"step_size must be below 2 pixel units, got {given}; did you mean {given}/255?")


def check_share(value: object, name: str) -> None:
    """Raises a ValueError unless `value` is a number between 0 and 1, both left out."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}")


def check_sizes(num_classes: int, in_chans: int, image_size: int, smallest_image: int = 1) -> None:
    """Refuse numbers that no classifier can be built from.

    Args:
        num_classes: Number of logits, at least 2.
        in_chans: Channels of an image, at least 1.
        image_size: Side of the square image in pixels, at least `smallest_image`.
        smallest_image: Side in pixels below which the network has nothing left to classify.

    Raises:
        ValueError: A number is not an integer, or too small.
    """
    check_integer("num_classes", num_classes, 2, "a classifier needs two classes or more")
    check_integer("in_chans", in_chans, 1, "1 for grey images, 3 for colour")
    check_integer(
        "image_size", image_size, smallest_image, "enlarge the images, or choose a network with less downsampling"
    )


def check_integer(name: str, value: int, least: int, advice: str) -> None:
    """Refuse a value that is not an integer of at least `least`.

    Args:
        name: What the user calls the value.
        value: The value. None is what an unfilled `null` of a recipe arrives as.
        least: The smallest value allowed.
        advice: The way out, the last words of the error.

    Raises:
        ValueError: The value is None, not an integer, or below `least`.
    """
    if value is None:
        raise ValueError(
            f"{name} must be an integer of at least {least}, got None; the null of a recipe is filled in from the "
            f"data by `train.py`: elsewhere give the number"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}; {advice}")
