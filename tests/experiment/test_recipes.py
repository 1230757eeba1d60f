"""Recipes: where they lie, which keys they may hold, how values are read."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from robustlit.experiment.recipes import (
    ConfigError,
    check_complete,
    check_keys,
    check_recipe_name,
    check_verdict,
    first_line,
    make_lists,
    read_fractions,
    recipe_files,
    recipes_folder,
)


def test_fractions_become_numbers_except_in_paths_and_interpolations() -> None:
    recipe = {"eps": "8/255", "deep": {"list": ["1/4", 3, " .5 / 2 "]}, "text": "linf", "none": None,
              "run_dir": "1/2", "data": {"root": "3/4"}, "again": "${eps}"}  # fmt: skip
    assert read_fractions(recipe) == {**recipe, "eps": 8 / 255, "deep": {"list": [0.25, 3, 0.25]}}
    assert recipe["eps"] == "8/255"  # unchanged
    with pytest.raises(ConfigError, match="eps=8/0 divides by zero"):
        read_fractions({"eps": "8/0"})


def test_a_single_name_or_budget_of_the_sweep_is_a_list_of_one() -> None:
    grid = {"linf": 0.1, "l2": ["${eps}", 1], "l1": "${budgets:x}", "l0": None}
    recipe = {"sweep": {"knowledge": "greybox", "on_all": None, "own_eps": ["pgd"], "grid": grid, "images": 10}}
    make_lists(recipe)
    grid = {"linf": [0.1], "l2": ["${eps}", 1], "l1": "${budgets:x}", "l0": []}
    assert recipe["sweep"] == {"knowledge": ["greybox"], "on_all": [], "own_eps": ["pgd"], "grid": grid, "images": 10}
    for other in ({}, {"sweep": None}, {"sweep": {"_target_": None}}, {"sweep": {"grid": None}}):
        before = dict(other)
        make_lists(other)
        assert other == before
    with pytest.raises(ConfigError, match=r"sweep.grid must give the budgets of a norm, got 0.1: sweep.grid.linf=\["):
        make_lists({"sweep": {"grid": 0.1}})


def test_shipped_recipes_are_found_and_described() -> None:
    files = recipe_files()
    assert {"standard", "pgd_adv_train", "fgsm_rs", "pgd_adv_train_madry"} <= set(files)
    assert "base" not in files
    for name, path in files.items():
        assert len(first_line(path)) > 20, name
        assert f"python train.py recipe={name}" in path.read_text(), name


def test_later_folders_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
        (folder / "standard.yaml").write_text("# mine\n")
    (mine / "new.yaml").write_text("# new\n")
    monkeypatch.setenv("ROBUSTLIT_RECIPES", str(mine))
    assert recipe_files()["standard"] == mine / "standard.yaml"
    files = recipe_files([other])
    assert files["standard"] == other / "standard.yaml"
    assert files["new"] == mine / "new.yaml"
    assert files["fgsm_rs"].parent == recipes_folder()


@pytest.mark.parametrize(
    ("name", "message"),
    [("pgd_adv_trian", "no recipe 'pgd_adv_trian'; did you mean pgd_adv_train"), ("zzz", "there are .*fgsm_rs")],
)
def test_what_is_not_there_is_named(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_recipe_name(name, recipe_files())
    with pytest.raises(ConfigError, match=r"no folder of recipes at .*nowhere"):
        recipe_files([tmp_path / "nowhere"])


def test_unknown_keys_and_missing_values_are_errors() -> None:
    base = OmegaConf.load(recipes_folder() / "base.yaml")
    keys = {str(k): None for k in base if k not in ("defaults", "hydra")}
    check_keys(OmegaConf.create({**keys, "model": {}, "data": {}}))
    with pytest.raises(ConfigError, match="'optimiser', which nothing reads; did you mean optimizer"):
        check_keys(OmegaConf.create({**keys, "optimiser": {}}))
    with pytest.raises(ConfigError, match=r"must give model\.name"):
        check_complete(OmegaConf.create({"model": {"name": "???"}, "eps": 0.3}))


def test_a_verdict_needs_attacks_that_know_the_defense() -> None:
    sweep = {"_target_": "robustlit.callbacks.AttackSweep", "knowledge": ["greybox", "blackbox"]}
    none: dict[str, object] = {"_target_": None}
    for profile, refused, message in (
        ("full", sweep, r"verdict=full .*sweep\.knowledge=\[greybox, blackbox\] runs none: add adaptive"),
        ("quick", none, r"verdict=quick .*judges a sweep, and with sweep=none there is none: choose"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_verdict(OmegaConf.create({"verdict": profile, "sweep": refused}))
    check_verdict(OmegaConf.create({"verdict": None, "sweep": none}))
    for taken in ({**sweep, "knowledge": ["greybox", "adaptive"]}, {"_target_": "mine.Sweep"}):
        check_verdict(OmegaConf.create({"verdict": "quick", "sweep": taken}))
