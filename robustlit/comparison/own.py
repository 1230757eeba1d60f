"""The recipe that `robustlit evaluate --model` composes for a net of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

# The keys of it that say how the net was evaluated; the others are of a training that never was.
_OF_AN_EVALUATION = ("data", "sweep", "trainer", "logger", "eps", "norm", "seed")


@cache
def default_recipe() -> Mapping[str, Any]:
    """What it composes where the command line changes nothing, as config.yaml would hold it."""
    from robustlit.experiment.composition import composed
    from robustlit.experiment.recipes import read_fractions, recipe_files, register_recipes, stored

    register_recipes(recipe_files())
    config = composed(["recipe=standard", "data=mnist", "sweep=worst_case"])
    config.recipe = "evaluate"
    read_fractions(config)
    return stored(config)


def of_its_evaluation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that says how the net was evaluated."""
    return {key: value for key, value in config.items() if key in _OF_AN_EVALUATION}
