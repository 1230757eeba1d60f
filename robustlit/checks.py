"""Argument checks: each raises a ValueError that names the value, the rule and the way out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

TOLERANCE = 1e-6  # of distances and budgets: float32 rounding of a pixel, and per unit of length of an L1 or L2 norm


def rounded_up(eps: Any, norm: str) -> Any:
    """Return the largest distance that counts as within `eps` (a number, array or tensor): rounding is no violation."""
    return eps + TOLERANCE * (1 + eps if norm in ("l1", "l2") else 1)


def budget_text(eps: float) -> str:
    """Return a budget as people write it: "8/255" for a whole or half number of grey levels, else "0.3"."""
    if abs(eps - float(f"{eps:.3g}")) > 1e-6 * abs(eps):  # .2 is 51/255 too, and written as .2
        levels = f"{round(510 * eps) / 2:g}"
        if float(levels) and abs(255 * eps - float(levels)) <= 1e-5 * float(levels):  # float32 and six digits suffice
            return f"{levels}/255"
    return f"{eps:.4g}"


def distinct_budgets(budgets: Iterable[float]) -> list[float]:
    """Return budgets in ascending order, of several that are the same within rounding the first that was given.

    8/255 in float32 and in float64, or with six digits, is one budget: they differ by `TOLERANCE` or that share.
    """
    kept: list[float] = []
    for eps in budgets:
        if not any(math.isclose(eps, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for other in kept):
            kept.append(eps)
    return sorted(kept)


def meant_levels(value: float) -> str:
    """Return "; did you mean 8/255?" for a value that is most likely in grey levels of 255, else ""."""
    return f"; did you mean {value:g}/255?" if 0 < value <= 255 else ""


def did_you_mean(name: str, names: Iterable[str], *, most: int = 1, cutoff: float = 0.6, prefix: str = "") -> str:
    """Return "did you mean NAME?" with the `names` most similar to a mistyped one, "" if none is similar.

    At most `most` names, of a similarity of at least `cutoff` in [0, 1] (see `difflib`), each behind `prefix`.
    """
    near = difflib.get_close_matches(name, list(names), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(prefix + each for each in near)}?" if near else ""


def as_names(names: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return a list of names as a tuple: a single name is a list of one, None (`null` in a recipe) an empty list."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def check_seed(value: object) -> None:
    """Raise a ValueError unless `value` is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"seed must be a whole number, got {value!r}; leave it out for seed=0")


def check_count(value: object, name: str) -> None:
    """Raise a ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_counts(owner: object, *names: str) -> None:
    """Raise a ValueError unless each named attribute of `owner` is a whole number of at least 1."""
    for name in names:
        check_count(getattr(owner, name), name)


def is_number(value: object) -> bool:
    """Return whether `value` is a finite real number; True and False are not numbers."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def check_positive(value: object, name: str, advice: str = "") -> None:
    """Raise a ValueError, which ends with `advice`, unless `value` is positive and finite."""
    if not is_number(value) or float(value) <= 0:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be positive and finite, got {value!r}{advice}")


def check_not_negative(value: object, name: str, advice: str = "") -> None:
    """Raise a ValueError, which ends with `advice`, unless `value` is at least 0 and finite."""
    if not is_number(value) or float(value) < 0:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}{advice}")


def check_share(value: object, name: str, advice: str = "") -> None:
    """Raise a ValueError, which ends with `advice`, unless `value` lies in (0, 1)."""
    if not is_number(value) or not 0 < float(value) < 1:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a share in (0, 1), got {value!r}{advice}")


def check_choice(value: object, name: str, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_step_size(step_size: object, relative_step_size: object, norm: str) -> None:
    """Check a step length, None or in pixel units, and one as a multiple of eps, of which only one may be given.

    Raises:
        ValueError: Both are given, one is not positive and finite, or `step_size` is at least 2 for "linf".
    """
    if step_size is not None and relative_step_size is not None:
        raise ValueError(
            f"step_size must be None where relative_step_size is given, got step_size={step_size!r} (pixel units at "
            f"eps) and relative_step_size={relative_step_size!r} (a multiple of eps); set one of them to None (null in "
            "a recipe)"
        )
    if step_size is not None and (not is_number(step_size) or float(step_size) <= 0):  # type: ignore[arg-type]
        raise ValueError(f"step_size must be positive pixel units, or None for the attack's rule, got {step_size!r}")
    if step_size is not None and norm == "linf" and float(step_size) >= 2:  # type: ignore[arg-type]
        # Twice the largest ball: most likely 2/255 was meant.
        raise ValueError(f"step_size must be below 2 pixel units, got {step_size:g}{meant_levels(float(step_size))}")  # type: ignore[arg-type]
    if relative_step_size is not None:
        advice = "; it is a multiple of eps, None for the attack's rule"
        check_positive(relative_step_size, "relative_step_size", advice)


def check_sizes(num_classes: int, in_chans: int, image_size: int, smallest_image: int = 1) -> None:
    """Raise a ValueError for numbers of logits, channels or pixels (side) that no classifier can be built from."""
    check_integer("num_classes", num_classes, 2, "a classifier needs two classes or more")
    check_integer("in_chans", in_chans, 1, "1 for grey images, 3 for colour")
    advice = "enlarge the images, or choose a network with less downsampling"
    check_integer("image_size", image_size, smallest_image, advice)


def check_integer(name: str, value: int, least: int, advice: str) -> None:
    """Raise a ValueError, which ends with `advice`, unless `value` is an integer of at least `least`.

    None is what an unfilled `null` of a recipe arrives as.
    """
    if value is None:
        raise ValueError(
            f"{name} must be an integer of at least {least}, got None; the null of a recipe is filled in from the "
            f"data by `train.py`: elsewhere give the number"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}; {advice}")
