"""Compare many runs side by side on one page, made from their folders alone."""

from robustlit.comparison.export import write_table
from robustlit.comparison.page import compare, compared, write_page
from robustlit.comparison.runs import ComparisonError

__all__ = ["ComparisonError", "compare", "compared", "write_page", "write_table"]
