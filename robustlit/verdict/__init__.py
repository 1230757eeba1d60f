"""Is a robust accuracy to be believed? Twenty checks of a model and its evaluation."""

from robustlit.verdict.judge import verdict

__all__ = ["verdict"]
