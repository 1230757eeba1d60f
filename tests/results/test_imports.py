"""Reading and drawing results loads no heavy library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "pytorch_lightning", "sklearn", "timm", "wandb")


def run(code: str) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_reading_and_drawing_results_needs_no_torch() -> None:
    code = "; ".join(f"import robustlit.{name}" for name in ("results", "figures", "comparison", "experiment.report"))
    assert run(f"import sys; {code}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"
