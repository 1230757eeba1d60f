"""What `import robustlit.evaluation` loads, and that its two functions are not hidden by the modules of their names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import robustlit.evaluation
from robustlit import threat
from robustlit.evaluation import table

HEAVY = ("torch", "pytorch_lightning", "sklearn", "timm", "wandb")


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_tables_intervals_figures_reports_and_stored_verdicts_need_no_torch() -> None:
    names = ("results", "intervals", "figures", "report", "verdict", "verdict.check")
    code = "; ".join(f"import robustlit.evaluation.{name}" for name in names)
    names_of = "from robustlit.evaluation import Accuracy, Check, Evaluation, EvaluationError, Verdict, wilson_interval"
    assert run(f"import sys; {code}; {names_of}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "from robustlit.evaluation.verdict import Verdict",
        "import robustlit.evaluation.evaluate, robustlit.evaluation.verdict.judge",
    ],
)
def test_evaluate_and_verdict_are_the_functions_whatever_was_imported_before(first: str) -> None:
    code = (
        f"{first}\n"
        "from robustlit.evaluation import evaluate, verdict\n"
        "import robustlit, robustlit.evaluation as package\n"
        "assert evaluate is package.evaluate is robustlit.evaluate\n"
        "assert verdict is package.verdict\n"
        "from robustlit.evaluation.verdict import FAIL, verdict as same\n"
        "assert same is verdict\n"
        "print(type(evaluate).__name__, evaluate.__name__, type(verdict).__name__, verdict.__name__)"
    )
    assert run(code) == "function evaluate function verdict"


def test_everything_named_is_there_and_nothing_else() -> None:
    for name in robustlit.evaluation.__all__:
        assert getattr(robustlit.evaluation, name).__name__ == name
    assert set(robustlit.evaluation.__all__) <= set(dir(robustlit.evaluation))
    assert not hasattr(robustlit.evaluation, "judge")
    assert not hasattr(import_module("robustlit.evaluation.verdict"), "judged")


def test_the_tolerance_is_that_of_the_attacks() -> None:
    assert table.TOLERANCE == threat.TOLERANCE
