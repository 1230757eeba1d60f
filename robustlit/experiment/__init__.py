"""One run: from a recipe to a run folder with checkpoints, evaluation and results.json."""
