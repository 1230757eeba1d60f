"""The exit code of a run, from what came out of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustlit.experiment import outcome
from robustlit.experiment.outcome import FAILED, INTERRUPTED, measure
from robustlit.experiment.trainer import Run


@pytest.mark.parametrize(
    ("status", "error", "interrupted", "strict", "code", "message"),
    [
        ("overstated", None, False, False, 0, "written to runs/x"),
        ("overstated", None, False, True, FAILED, "written to runs/x"),
        ("believable", None, False, True, 0, "written to runs/x"),
        (None, None, False, True, 1, "error: --strict, but there is no verdict: nothing to judge"),
        (None, None, False, False, 0, "written to runs/x"),
        ("overstated", OSError("disk full"), False, True, 1, "could not be written to runs/x: disk full"),
        ("overstated", None, True, True, INTERRUPTED, "written to runs/x"),
    ],
)
def test_the_exit_code(
    status: str | None, error: OSError | None, interrupted: bool, strict: bool, code: int, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def test(*arguments: Any, **named: Any) -> None:
        if interrupted:
            raise SystemExit

    monkeypatch.setattr(outcome, "_write_and_print", lambda run, *found: run.sweep.write_error)
    plan: Any = SimpleNamespace(run_dir=Path("runs/x"), config={})
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[], callbacks=[], test=test)
    verdict = None if status is None else SimpleNamespace(status=status)
    judge, sweep = (
        SimpleNamespace(verdict=verdict, trouble="nothing to judge"),
        SimpleNamespace(evaluation=1, write_error=error),
    )
    assert measure(Run(plan, None, None, trainer, sweep, judge), {}, strict=strict) == code
    assert message in capsys.readouterr().err
