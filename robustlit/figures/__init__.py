"""Figures and curve tables, drawn from the per-example tables: no model is loaded, nothing is attacked again."""

from robustlit.figures.curves import curves_csv, curves_figure, distance_grid, save_figure, write_figure
from robustlit.figures.extent import Search, attacked_to, exact_at, known_at, searched
from robustlit.figures.from_folders import Wanted, draw_folders
from robustlit.figures.images import budgets_figure, images_figure
from robustlit.figures.lines import knob_settings
from robustlit.figures.panel import COLOURS, KNOWLEDGE_STYLES, STYLES, UNITS
from robustlit.figures.run import draw_run, file_name, run_figures, run_name
from robustlit.figures.several import check_same_examples, knowledge_figure, models_figure, on_common_examples
from robustlit.figures.training_time import TrainedRun, training_time_figure
from robustlit.figures.verdict import verdict_figure

__all__ = [
    "COLOURS", "KNOWLEDGE_STYLES", "STYLES", "UNITS", "Search", "TrainedRun", "Wanted", "attacked_to", "budgets_figure",
    "check_same_examples", "curves_csv", "curves_figure", "distance_grid", "draw_folders", "draw_run", "exact_at",
    "file_name", "images_figure", "knob_settings", "knowledge_figure", "known_at", "models_figure",
    "on_common_examples", "run_figures", "run_name", "save_figure", "searched", "training_time_figure",
    "verdict_figure", "write_figure",
]  # fmt: skip
