"""Comparison: many runs side by side on one page, read from their folders alone."""

from robustlit.comparison.excerpt import ComparisonError
from robustlit.comparison.page import compare, write_page

__all__ = ["ComparisonError", "compare", "write_page"]
