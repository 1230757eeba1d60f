"""Bring a recipe that an earlier version stored up to date."""

from __future__ import annotations

from typing import Any

_WORST_CASE = "robustlit.attacks.WorstCase"
_IMAGES = "robustlit.callbacks.AdversarialImages"
_OBJECTIVES = "robustlit.objectives."


def migrated(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a stored recipe under the names of this version; one that is up to date comes back as it is.

    Renamed since: the attack key `ensemble` of `WorstCase` -> `worst_case`, `margin` of an objective -> `eps_scale`.
    The images drawn were those of the validation attack, and are now those of the quoted one.
    """
    recipe = dict(recipe)
    sweep, objective = recipe.get("sweep"), recipe.get("objective")
    attacks = sweep.get("attacks") if isinstance(sweep, dict) else None
    if isinstance(attacks, dict) and "worst_case" not in attacks and _target(attacks.get("ensemble")) == _WORST_CASE:
        recipe["sweep"] = {**recipe["sweep"], "attacks": _renamed(attacks, "ensemble", "worst_case")}
    if isinstance(objective, dict) and "eps_scale" not in objective and _target(objective).startswith(_OBJECTIVES):
        recipe["objective"] = _renamed(objective, "margin", "eps_scale")
    callbacks: Any = recipe.get("callbacks")
    images: Any = callbacks.get("images") if isinstance(callbacks, dict) else None
    if _target(images) == _IMAGES and images.get("attack") == "${validation_attack}":
        recipe["callbacks"] = {**callbacks, "images": {**images, "attack": None, "norm": "${norm}", "eps": "${eps}"}}
    return recipe


def _target(node: object) -> str:
    return str(node.get("_target_")) if isinstance(node, dict) else ""


def _renamed(node: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in node.items()}
