"""Evaluation: attack a classifier, keep the result of every example, derive everything else from that table."""

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
