"""One override of eps: every budget, step and grid of every recipe is the same multiple of eps at any eps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from robustlit.attacks.ascent import GradientAscent
from robustlit.experiment.composition import composed, group_file
from robustlit.experiment.recipes import (
    USUAL_EPS,
    budgets,
    read_fractions,
    recipe_files,
    recipes_folder,
    register_recipes,
    stored,
    times,
)

RECIPES = sorted(recipe_files())
L2 = {"jumprelu_random": 1.5, "smoothing": 0.5}
OWN = {"embedding_regression": 0.1, "pcl": 0.1, "label_embedding": 0.1, "label_smoothing": 0.1, **L2}
OWN |= {recipe: 8 / 255 for recipe in RECIPES if recipe.startswith("cifar10_")}
# In pixel units and right as they are: noise and curve ends belong to the data and to comparisons, not to a budget.
IN_BUDGETS = ("eps", "grid", "hinge_bound", "corrector_eps", "sigma")


@cache
def resolved(*overrides: str) -> dict[str, Any]:
    register_recipes(recipe_files())
    recipe = stored(composed([*overrides, "name=x", "run_dir=x"]))
    # ${hydra:...} can be answered by a run alone.
    config = OmegaConf.create(read_fractions({**recipe, "recipe": "any"}))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def budgets_in(node: Any, path: str = "", inside: bool = False) -> Iterator[tuple[str, float]]:
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if not (key == "l2" and path == ".corrector_eps"):  # FGSM's, for a run judged in L2
                yield from budgets_in(value, f"{path}.{key}", inside or key in IN_BUDGETS)
    elif inside and isinstance(node, (int, float)):
        yield path, float(node)


def attacks_in(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        if str(node.get("_target_", "")).startswith("robustlit.attacks.") and "steps" in node:
            yield path, node
        for key, value in node.items():
            yield from attacks_in(value, f"{path}.{key}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_budget_and_step_of_a_recipe_is_in_proportion_to_eps(recipe: str) -> None:
    own, recipes = OWN.get(recipe, 0.3), [resolved(f"recipe={recipe}", *more) for more in ((), ("eps=8/255",))]
    before, after = (dict(budgets_in(each)) for each in recipes)
    assert before.keys() == after.keys()
    assert before[".eps"] == own
    for path, value in before.items():
        assert after[path] / (8 / 255) == pytest.approx(value / own, rel=1e-9), path
    attacks, rescaled = (dict(attacks_in(each)) for each in recipes)
    assert ".validation_attack" in attacks
    for path, node in attacks.items():
        assert node.get("step_size") is None, path
        built, other = instantiate(node), instantiate(rescaled[path])
        if isinstance(built, GradientAscent):
            assert built.step_over_eps == other.step_over_eps <= 2
            assert built.norm == other.norm == ("l2" if recipe in L2 else "linf")


STEPS = {
    "pgd_adv_train": 0.165, "pgd_fast": 0.165, "pgd_base_cnn": 0.165, "pgd_adv_train_madry": 0.01, "fgsm_rs": 0.375,
    "trades": 0.140625, "mart": 0.140625,
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "step"), STEPS.items())
def test_training_attacks_are_those_of_eps_3_and_of_the_runs_norm(recipe: str, step: float) -> None:
    attack = instantiate(resolved(f"recipe={recipe}")["objective"]["attack"])
    assert attack.eps * attack.step_over_eps == step
    assert resolved(f"recipe={recipe}", "norm=l2", "eps=1")["objective"]["attack"]["norm"] == "l2"


def test_grids_are_the_figures_at_eps_3() -> None:
    names = {"linf": "standard", "defense": "jumprelu", "detector": "detect_and_correct", "advgan": "advgan"}
    grid = {sweep: resolved(f"recipe={recipe}")["sweep"]["grid"] for sweep, recipe in names.items()}
    grid |= {s: resolved("recipe=standard", f"sweep={s}")["sweep"]["grid"] for s in ("linf_fixed", "many_attacks")}
    assert grid["linf"] == grid["linf_fixed"] == grid["advgan"] == {"linf": [0.1, 0.2, 0.3, 0.4]}
    assert (grid["defense"], grid["detector"]["linf"]) == ({"linf": [0.05, 0.1, 0.15, 0.2, 0.3]}, [0.1, 0.2, 0.3])
    assert grid["many_attacks"] == {"linf": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]}
    assert resolved("recipe=jumprelu_random")["sweep"]["grid"] == {"l2": [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]}
    fixed = resolved("recipe=standard", "sweep=linf_fixed", "eps=8/255")
    assert fixed["sweep"]["grid"] == grid["linf"]
    assert resolved("recipe=standard", "sweep.grid.linf=[0.1]")["sweep"]["grid"] == {"linf": [0.1]}


def test_a_budget_that_is_not_given_is_read_as_in_the_base_recipe() -> None:
    base = OmegaConf.to_container(OmegaConf.load(recipes_folder() / "base.yaml"))
    assert isinstance(base, dict)
    assert base["eps"] == USUAL_EPS


def eps_of(*overrides: str) -> float | None:
    register_recipes(recipe_files())
    return OmegaConf.create(stored(composed([*overrides, "name=x", "run_dir=x"]))).eps


@pytest.mark.parametrize("recipe", OWN)
def test_a_recipes_own_budget_holds_for_its_data_in_its_norm(recipe: str) -> None:
    if recipe.startswith("cifar10_"):
        assert (eps_of(f"recipe={recipe}", "data=mnist"), eps_of(f"recipe={recipe}", "norm=l2")) == (0.3, None)
        return
    own, other = ("l2", "linf") if recipe in L2 else ("linf", "l2")
    assert eps_of(f"recipe={recipe}", f"norm={own}") == OWN[recipe]
    assert eps_of(f"recipe={recipe}", f"norm={other}") == (0.3 if other == "linf" else None)
    for data, usual in {"cifar10": 8 / 255, "fashion_mnist": 0.1, "image_folder": None}.items():
        assert eps_of(f"recipe={recipe}", f"data={data}") == (usual if own == "linf" else None)
    assert eps_of(f"recipe={recipe}", "data=cifar10", f"norm={other}", "eps=0.7") == 0.7


def test_a_multiple_is_rounded_to_what_was_meant_and_eps_stays_eps() -> None:
    assert [times(0.3, m) for m in ("1/3", "2/3", "1/6", 1)] == [0.1, 0.2, 0.05, 0.3]
    assert times("8/255", "1") == 8 / 255
    assert budgets("linf", 0.8, "1/2", 1, "4/3") == [0.4, 0.8]  # no L-inf budget lies above 1
    assert budgets("l2", "3/4", "4/3") == [1.0]


def test_the_old_name_of_a_sweep_is_its_new_one() -> None:
    with pytest.warns(FutureWarning, match="sweep=nine is now sweep=many_attacks"):
        old = group_file("sweep", "nine")
    assert old == group_file("sweep", "many_attacks")
    with pytest.warns(FutureWarning, match="sweep=nine is now sweep=many_attacks"):
        assert composed(["recipe=standard", "sweep=nine"]).sweep == old


def test_the_command_line_shows_the_step_in_proportion(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "recipe=pgd_adv_train", "eps=8/255", "--cfg", "job") == 0
    attack = OmegaConf.create(capsys.readouterr().out).objective.attack
    assert (attack.eps, attack.relative_step_size) == ("8/255", 0.55)
