"""The unfinished evaluation that `robustlit evaluate ... resume=auto` goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustlit.experiment.resume import Recipe, is_finished
from robustlit.experiment.run_folder import CONFIG, numbers_of
from robustlit.results.files import read_yaml

# What may differ: how and where it runs. What the rows depend on is in the digest of each kept batch, too.
_FREE = ("name", "run_dir", "resume", "logger", "callbacks", "trainer", "verdict", "min_robust", "checkpoint_minutes",
         "ckpt_path")  # fmt: skip


def find_evaluation(recipe: Recipe, origin: str, run_dir: Path) -> Path | None:
    """Return the newest folder with an evaluation of these settings, unfinished ones first; None where there is none.

    Args:
        recipe: Of the evaluation that is asked for.
        origin: The checkpoint or function that it attacks.
        run_dir: The folder that a first evaluation gets; further ones are numbered.
    """
    there = [folder for folder in numbers_of(run_dir) if _is_of(folder, recipe, origin)]
    newest = [folder for folder in there if not is_finished(folder)] or there
    return newest[-1] if newest else None


def stored_recipe(run: Path) -> Recipe:
    """Return what is in a run's config.yaml; {} where there is none that can be read."""
    try:
        recipe: Any = read_yaml(run / CONFIG)
    except Exception:  # of a broken file; readers raise many kinds
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _is_of(run: Path, recipe: Recipe, origin: str) -> bool:
    stored = stored_recipe(run)
    place = stored.get("ckpt_path")
    if not isinstance(place, str) or Path(place).resolve() != Path(origin).resolve():
        return False
    return _settings(stored) == _settings(recipe)


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in _FREE and value is not None}
