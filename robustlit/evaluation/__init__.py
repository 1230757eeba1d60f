"""Attack a classifier over data and keep the result of every example: `evaluate`, and the `Sweep` that it runs."""

import warnings
from importlib import import_module
from typing import Any

from robustlit.evaluation.adversarials import load_adversarials
from robustlit.evaluation.evaluate import evaluate
from robustlit.evaluation.sweep import Sweep

__all__ = ["Sweep", "evaluate", "load_adversarials"]
# Names that moved; importable from here, with a warning, until the next release.
_MOVED = {"verdict": "robustlit.verdict"} | dict.fromkeys(
    ("Accuracy", "Check", "Evaluation", "EvaluationError", "Verdict", "wilson_interval"), "robustlit.results"
)


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _MOVED[name]
    warnings.warn(f"{__name__}.{name} has moved: use `from {new} import {name}`", DeprecationWarning, stacklevel=2)
    return getattr(import_module(new), name)
