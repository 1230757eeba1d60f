"""Recipes: where they lie, what they may hold, how values are read."""

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
    read_fractions,
    recipe_files,
    recipes_folder,
)


def test_fractions_become_numbers_wherever_they_stand() -> None:
    config = OmegaConf.create({"eps": "8/255", "deep": {"list": ["1/4", 3, " .5 / 2 "]}, "text": "linf", "none": None})
    read_fractions(config)
    assert config.eps == pytest.approx(8 / 255)
    assert config.deep.list == [0.25, 3, 0.25]
    assert config.text == "linf"
    assert config.none is None


def test_paths_and_interpolations_are_no_fractions() -> None:
    config = OmegaConf.create({"run_dir": "1/2", "root": "3/4", "eps": "1/2", "again": "${eps}"})
    read_fractions(config)
    assert config.run_dir == "1/2"
    assert config.root == "3/4"
    assert OmegaConf.is_interpolation(config, "again")
    assert config.again == 0.5


def test_a_fraction_over_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="eps=8/0 divides by zero"):
        read_fractions(OmegaConf.create({"eps": "8/0"}))


def test_shipped_recipes_are_found_and_introduce_themselves() -> None:
    files = recipe_files()
    assert {"standard", "pgd_adv_train", "fgsm_rs", "pgd_adv_train_madry"} <= set(files)
    assert "base" not in files
    for name, path in files.items():
        assert len(first_line(path)) > 20, name
        assert f"python train.py recipe={name}" in path.read_text(), name


def test_own_folders_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_missing_folder_of_recipes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder of recipes at .*nowhere"):
        recipe_files([tmp_path / "nowhere"])


def test_a_typo_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'pgd_adv_trian'; did you mean pgd_adv_train"):
        check_recipe_name("pgd_adv_trian", recipe_files())
    with pytest.raises(ConfigError, match=r"there are .*fgsm_rs"):
        check_recipe_name("zzz", recipe_files())


def test_a_key_that_nothing_reads_is_refused() -> None:
    base = OmegaConf.load(recipes_folder() / "base.yaml")
    keys = {str(k): None for k in base if k not in ("defaults", "hydra")}
    check_keys(OmegaConf.create({**keys, "model": {}, "data": {}}))
    with pytest.raises(ConfigError, match="'optimiser', which nothing reads; did you mean optimizer"):
        check_keys(OmegaConf.create({**keys, "optimiser": {}}))


def test_values_still_to_give_are_named() -> None:
    with pytest.raises(ConfigError, match=r"must give model\.name"):
        check_complete(OmegaConf.create({"model": {"name": "???"}, "eps": 0.3}))


def test_a_verdict_needs_attacks_that_know_the_defense() -> None:
    sweep = {"_target_": "robustlit.callbacks.AttackSweep", "knowledge": ["greybox", "blackbox"]}
    with pytest.raises(
        ConfigError, match=r"verdict=full .*sweep\.knowledge=\[greybox, blackbox\] runs none: add adaptive"
    ):
        check_verdict(OmegaConf.create({"verdict": "full", "sweep": sweep}))
    with pytest.raises(ConfigError, match=r"verdict=quick .*judges a sweep, and with sweep=none there is none: choose"):
        check_verdict(OmegaConf.create({"verdict": "quick", "sweep": {"_target_": None}}))
    check_verdict(OmegaConf.create({"verdict": None, "sweep": {"_target_": None}}))
    check_verdict(OmegaConf.create({"verdict": "quick", "sweep": {**sweep, "knowledge": ["greybox", "adaptive"]}}))
    check_verdict(OmegaConf.create({"verdict": "quick", "sweep": {"_target_": "mine.Sweep"}}))
