"""Deprecated: the figures have moved to `robustlit.figures`. This module goes with the next release."""

import warnings
from importlib import import_module
from typing import Any

_NEW = "robustlit.figures"


def __getattr__(name: str) -> Any:
    figures = import_module(_NEW)
    if name not in figures.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__} has moved: use `from {_NEW} import {name}`", DeprecationWarning, stacklevel=2)
    return getattr(figures, name)
