"""The table of per-example results and everything that is read from it. Needs no torch."""

from robustlit.results.evaluation import Evaluation
from robustlit.results.intervals import Accuracy, wilson_interval
from robustlit.results.table import EvaluationError
from robustlit.results.verdict import (
    BELIEVABLE,
    FAIL,
    INCONCLUSIVE,
    OVERSTATED,
    PASS,
    UNDECIDED,
    Check,
    Verdict,
)

__all__ = [
    "BELIEVABLE", "FAIL", "INCONCLUSIVE", "OVERSTATED", "PASS", "UNDECIDED", "Accuracy", "Check", "Evaluation",
    "EvaluationError", "Verdict", "wilson_interval",
]  # fmt: skip
