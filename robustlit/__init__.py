"""robustlit: train image classifiers that withstand adversarial examples, and measure honestly how far they do."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustlit.evaluation import evaluate
    from robustlit.results import Accuracy, Evaluation
    from robustlit.training import load

__version__ = "0.1.0"
__all__ = ["Accuracy", "Evaluation", "__version__", "evaluate", "load"]
_SUBPACKAGES = (
    "attacks", "callbacks", "certify", "comparison", "data", "defenses", "evaluation", "figures", "models",
    "objectives", "results", "threat", "tracking", "training", "verdict",
)  # fmt: skip
_EXPORTS = {"Accuracy": "results", "Evaluation": "results", "evaluate": "evaluation", "load": "training"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line must answer --help without waiting for torch.
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
