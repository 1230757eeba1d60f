"""What a recipe's file says of its own net and data alone, and what becomes of it with others."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from hydra.utils import get_object
from omegaconf import ListConfig, OmegaConf

from robustlit.experiment.recipes import ConfigError, recipe_files
from robustlit.tracking.console import say


def check_similarity(recipe: dict[str, Any]) -> None:
    """Raise a ConfigError where the similarities in a recipe's file, of MNIST's classes, are used with other data."""
    own, used = (
        OmegaConf.select(OmegaConf.create(each), "objective.outer.similarity") for each in (own_lines(recipe), recipe)
    )
    data = str(recipe["data"].get("_target_", "")).rsplit(".", 1)[-1]
    if isinstance(own, ListConfig) and own == used and data != "MNIST":
        raise ConfigError(
            f"recipe={recipe['recipe']} has the similarities of MNIST's classes, and the data are {data}: give "
            "objective.outer.similarity=, a matrix of its classes, or pixels to compute one"
        )


def own_lines(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what a recipe's file says, as plain containers; nothing for a recipe without a file."""
    file = recipe_files().get(str(recipe.get("recipe")))
    said = OmegaConf.to_container(OmegaConf.load(file)) if file else None
    return {str(key): value for key, value in said.items()} if isinstance(said, dict) else {}


def drop_what_the_net_does_not_take(recipe: dict[str, Any]) -> None:
    """Delete what a recipe's file says of its own net (`mean`, `std`) where another was chosen that does not take it.

    A line says so. What the command line gives stays, and is refused where the net is built.
    """
    own, model = own_lines(recipe).get("model"), recipe.get("model")
    if not isinstance(own, dict) or not isinstance(model, dict):
        return
    try:
        takes = signature(get_object(str(model.get("_target_")))).parameters
    except Exception:  # what cannot be imported is reported where it is built
        return
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values()):
        return
    gone = [key for key, value in own.items() if key not in takes and key in model and model[key] == value]
    for key in gone:
        del model[key]
    if gone:
        name, left_out = str(model["_target_"]).rsplit(".", 1)[-1], ", ".join(f"model.{key}" for key in gone)
        say(f"warning: recipe={recipe['recipe']} sets {left_out}, which {name} does not take: left out")
