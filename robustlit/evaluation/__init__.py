"""Attack a classifier over data and keep the result of every example: `evaluate` and the `Sweep` it runs."""

from robustlit.evaluation.evaluate import evaluate
from robustlit.evaluation.sweep import Sweep

__all__ = ["Sweep", "evaluate"]
