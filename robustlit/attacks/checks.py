"""Checks of hyper-parameters that several attacks share."""

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
