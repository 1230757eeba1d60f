"""Everything about Weights & Biases: metric names, the logger, offline runs and their upload, the dashboard."""
