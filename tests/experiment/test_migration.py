"""Recipes that an earlier version stored."""

from __future__ import annotations

import copy
from typing import Any

from robustlit.experiment.composition import composed, overridden
from robustlit.experiment.migration import migrated
from robustlit.experiment.recipes import recipe_files, register_recipes, stored

WORST = {"_target_": "robustlit.attacks.WorstCase", "eps": "${eps}", "norm": "${norm}"}
NEAREST = {"_target_": "robustlit.attacks.NearestL2"}
OLD: dict[str, Any] = {
    "eps": 0.3,
    "objective": {"_target_": "robustlit.objectives.AdversarialTraining", "warmup": 0.4, "margin": 16 / 15},
    "sweep": {"_target_": "robustlit.callbacks.AttackSweep", "attacks": {"ensemble": WORST, "nearest_l2": NEAREST}},
}


def test_renamed_keys_keep_their_values_and_their_places() -> None:
    before = copy.deepcopy(OLD)
    new = migrated(before)
    assert list(new["sweep"]["attacks"].items()) == [("worst_case", WORST), ("nearest_l2", NEAREST)]
    assert list(new["objective"].items())[2] == ("eps_scale", 16 / 15)
    assert before == OLD
    assert migrated(new) == new


def test_other_keys_of_the_same_name_stay() -> None:
    own = {
        "objective": {"_target_": "mine.Hinge", "margin": 1.0},
        "sweep": {"attacks": {"ensemble": {"_target_": "mine.Ensemble"}}},
    }
    assert migrated(own) == own
    for recipe in ({}, {"objective": None, "sweep": {"_target_": None}}, {"sweep": {"attacks": None}}):
        assert migrated(recipe) == recipe  # type: ignore[arg-type]


def test_overrides_of_an_old_recipe_use_the_new_names() -> None:
    register_recipes(recipe_files())
    now = {**stored(composed(["recipe=pgd_adv_train", "sweep=none"])), "recipe": "pgd_adv_train"}
    config = overridden(
        migrated({**now, "sweep": OLD["sweep"]}), ["sweep.attacks.worst_case.norm=l2", "trainer=default"]
    )
    assert (config.sweep.attacks.worst_case.norm, config.sweep.attacks.worst_case.eps) == ("l2", 0.3)
    assert config.trainer.max_epochs == now["trainer"]["max_epochs"]
    assert list(config.sweep.attacks) == ["worst_case", "nearest_l2"]


def test_images_of_the_validation_attack_become_those_of_the_quoted_one() -> None:
    images = {"_target_": "robustlit.callbacks.AdversarialImages", "attack": "${validation_attack}", "count": 10}
    recipe = {"callbacks": {"images": images, "progress": {"_target_": "robustlit.callbacks.Progress"}}}
    expected = {**images, "attack": None, "norm": "${norm}", "eps": "${eps}"}
    assert migrated(recipe)["callbacks"] == {**recipe["callbacks"], "images": expected}
    assert migrated({"callbacks": {"images": None}}) == {"callbacks": {"images": None}}
    own = {"callbacks": {"images": {**images, "attack": {"_target_": "robustlit.attacks.FGSM", "eps": 0.3}}}}
    assert migrated(own) == own
