"""Overrides of unknown keys and choices, and the messages for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustlit.experiment.composition import check_overrides, composed
from robustlit.experiment.recipes import ConfigError, recipe_files, recipes_folder, register_recipes

register_recipes(recipe_files())


def test_overrides_reach_the_recipe() -> None:
    config = composed(["recipe=pgd_adv_train", "eps=0.1", "+sweep.grid.l2=[1.0]", "~sweep.attacks.bim", "sweep=linf"])
    assert (config.eps, config.sweep.grid.l2) == (0.1, [1.0])
    assert sorted(config.sweep.attacks) == ["fgsm", "pgd", "worst_case"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimzer.lr=3", "the recipe has no optimzer.lr; did you mean optimizer.lr?"),
        ("optimizer.lrr=3", "the recipe has no optimizer.lrr; did you mean optimizer.lr?"),
        ("trainer.max_epoch=2", "did you mean trainer.max_epochs?"),
        ("sweep.attacks.pgd.stepz=4", "did you mean sweep.attacks.pgd.steps?"),
        ("epz=0.1", "did you mean eps?"),
        ("~sweep.attacks.square", "sweep.attacks has bim, fgsm, pgd, worst_case; "),
        ("optimzer.lr=1,2", "the recipe has no optimzer.lr; did you mean optimizer.lr?"),
        ("model=nope", "there is no model 'nope'; there are base_cnn, "),
        ("sweep=nope", "there is no sweep 'nope'; there are advgan, autoattack, certified, defense, detector, l2, "),
        ("sweep=linf,nope", "there is no sweep 'nope'; there are advgan, "),
        ("data=mnits", "there is no data 'mnits'; there are cifar10, "),
        ("eps", "'eps' cannot be read (missing EQUAL at '<EOF>'); write key=value, such as eps=8/255"),
        ("data.seed=[1", "'data.seed=[1' cannot be read"),
    ],
)
def test_an_unknown_name_is_an_error_of_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        check_overrides(["recipe=standard", override], several=True)
    assert "\n" not in str(raised.value)


def test_several_values_are_several_jobs() -> None:
    several = ["recipe=standard,fgsm_rs", "eps=0.1,0.2", "sweep=linf,l2", "trainer.max_epochs=range(1,3)"]
    check_overrides(several, several=True)
    check_overrides(["recipe=standard", "model=glob(*)"], several=True)  # spelled out by Hydra
    for override in several:
        with pytest.raises(ConfigError, match=re.escape(f"{override} gives several values, for as many runs: ")):
            check_overrides([override])


def test_own_folders_add_choices(tmp_path: Path) -> None:
    mine = tmp_path / "my, recipes=1"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "tiny.yaml").write_text((recipes_folder() / "model" / "small_cnn.yaml").read_text())
    check_overrides(["recipe=standard", "model=tiny"], [str(mine)])
    with pytest.raises(ConfigError, match=r"no model 'tinny'; there are .*timm, tiny"):
        check_overrides(["recipe=standard", "model=tinny"], [str(mine)])
    with pytest.raises(ConfigError, match="no model 'tiny'"):
        check_overrides(["recipe=standard", "model=tiny"])


BROKEN = {
    "tabs": b"objective:\n\t_target_: x\n",
    "two": b"a: 1\n---\nb: 2\n",
    "tag": b"a: !reference [x]\n",
    "latin": b"# caf\xe9\na: 1\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_recipe_stops_nothing_but_itself(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"{kind}.yaml").write_bytes(BROKEN[kind])
    files = recipe_files([tmp_path])
    register_recipes(files)
    register_recipes(files, ["standard"])
    with pytest.raises(ConfigError, match=rf"{kind}\.yaml is not a recipe that can be read: ") as raised:
        register_recipes(files, ["standard", kind])
    assert "\n" not in str(raised.value)
    if kind == "tabs":
        assert str(raised.value).endswith("cannot start any token (line 2); indent with spaces")
