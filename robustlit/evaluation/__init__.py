"""Evaluation: attack a classifier, keep the result of every example, derive everything else from that table.

Names are loaded on first use: reading a table, drawing it and comparing runs need no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustlit.evaluation.evaluate import evaluate
    from robustlit.evaluation.intervals import Accuracy, wilson_interval
    from robustlit.evaluation.results import Evaluation, EvaluationError
    from robustlit.evaluation.sweep import Sweep
    from robustlit.evaluation.verdict import Check, Verdict, verdict

__all__ = [
    "Accuracy",
    "Check",
    "Evaluation",
    "EvaluationError",
    "Sweep",
    "Verdict",
    "evaluate",
    "verdict",
    "wilson_interval",
]
_WHERE = {
    "Accuracy": "intervals",
    "Check": "verdict.check",
    "Evaluation": "results",
    "EvaluationError": "results",
    "Sweep": "sweep",
    "Verdict": "verdict.check",
    "evaluate": "evaluate",
    "verdict": "verdict.judge",
    "wilson_interval": "intervals",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Two functions share their names with the modules that they are in.

    Python's import sets a submodule as an attribute of its package, where it would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
