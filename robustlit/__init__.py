"""robustlit: train image classifiers that withstand adversarial examples, and measure honestly how far they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustlit.evaluation import Accuracy, Evaluation, evaluate

__version__ = "0.1.0"
__all__ = ["Accuracy", "Evaluation", "__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line must answer --help without waiting for torch.
    if name in __all__:
        from robustlit import evaluation

        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
