"""Compare many runs side by side on one page, made from their folders alone."""

from robustlit.comparison.page import compare, write_page
from robustlit.comparison.runs import ComparisonError

__all__ = ["ComparisonError", "compare", "write_page"]
