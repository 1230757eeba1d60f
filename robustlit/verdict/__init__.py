"""Is a robust accuracy to be believed? Checks of a model and its evaluation."""

from robustlit.verdict.judge import verdict

__all__ = ["verdict"]
