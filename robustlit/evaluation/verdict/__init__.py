"""Is a robust accuracy to be believed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustlit.evaluation.verdict.check import FAIL, INCONCLUSIVE, PASS, Check, Verdict

if TYPE_CHECKING:
    from robustlit.evaluation.verdict.judge import verdict

__all__ = ["FAIL", "INCONCLUSIVE", "PASS", "Check", "Verdict", "verdict"]


def __getattr__(name: str) -> Any:
    # A stored verdict is read and drawn without torch; judging takes it.
    if name == "verdict":
        from robustlit.evaluation.verdict.judge import verdict

        return verdict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
