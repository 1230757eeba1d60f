"""The plan: the recipe is checked and completed once, and nothing writes to it afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ReadonlyConfigError

from robustlit.experiment import evaluate, train
from robustlit.experiment.composition import composed, overridden
from robustlit.experiment.plan import Plan, fill_from_data, make, normalised, plan_evaluation, plan_training
from robustlit.experiment.recipes import ConfigError, is_left_out, read_only, recipe_files, register_recipes, stored
from robustlit.models import SmallCNN
from robustlit.training.checkpoint import pack

SHORT = ["recipe=standard", "model=small_cnn", "data.train_size=300", "data.val_size=50", "data.test_size=20",
         "validation_attack.steps=1", "trainer.max_epochs=1", "trainer.accelerator=cpu", "sweep.attacks.pgd.steps=2",
         "sweep.attacks.bim.steps=2", "logger=csv"]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.pop("ROBUSTLIT_RUN_DIR", None)


def recipe(*overrides: str) -> DictConfig:
    """A composed recipe, as the command line hands it on."""
    register_recipes(recipe_files())
    config = composed([*SHORT, *overrides])
    return OmegaConf.create({**stored(config), "recipe": "standard"})


def test_every_value_is_read_while_planning(tmp_path: Path) -> None:
    plan = plan_training(recipe("eps=8/255", "seed=3", "logger=wandb", "trainer.precision=auto"), "python train.py")
    assert (plan.config.recipe, plan.name, plan.run_dir) == ("standard", "standard", tmp_path / "runs" / "standard")
    assert (plan.eps, plan.norm, plan.seed, plan.command) == (8 / 255, "linf", 3, "python train.py")
    config = plan.config
    assert (config.validation_attack.eps, config.ckpt_path, config.logger.name) == (8 / 255, None, "standard")
    assert (config.model.num_classes, config.model.in_chans, config.model.image_size) == (10, 1, 28)
    assert len(config.logger.run_id) == 8
    assert plan.trainer["precision"] in ("bf16-mixed", "32-true")
    assert config.trainer.precision == "auto"  # another machine decides again


def test_an_evaluation_has_its_own_folder_and_run_and_the_group_of_the_training(tmp_path: Path) -> None:
    config = recipe("logger=wandb", "name=mine", "logger.run_id=first")
    for name in ("mine-eval", "mine-eval-2"):
        os.environ.pop("ROBUSTLIT_RUN_DIR", None)
        plan = plan_evaluation(config, "runs/mine")
        assert (plan.name, plan.run_dir) == (name, tmp_path / "runs" / name)
        logger = plan.config.logger
        assert (logger.job_type, logger.group, logger.name, logger.folder) == ("eval", "mine", name, str(plan.run_dir))
        assert logger.run_id != "first"


def resumable(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint in a run folder."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    weights = {f"net.{name}": value for name, value in SmallCNN().state_dict().items()}
    path = folder / "checkpoints" / "last.ckpt"
    of_lightning = {"epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.0", "loops": {}}
    of_lightning |= {"optimizer_states": [], "lr_schedulers": []}
    torch.save({**of_lightning, "state_dict": weights, "robustlit": pack(config)}, path)
    return path


def test_a_resumed_run_keeps_its_folder_its_wandb_run_and_what_its_objective_learned(tmp_path: Path) -> None:
    before = {"logger": {"run_id": "first"}, "objective": {"similarity": [[1.0]]}}
    path = resumable(tmp_path / "runs" / "mine", before)
    plan = plan_training(recipe("ckpt_path=runs/mine", "logger=wandb"))
    assert (plan.run_dir, plan.new_run_dir, plan.name) == (tmp_path / "runs" / "mine", None, "mine")
    assert (plan.config.ckpt_path, plan.config.logger.run_id) == (str(path), "first")
    assert plan.config.objective.similarity == [[1.0]]
    os.environ.pop("ROBUSTLIT_RUN_DIR", None)
    other = plan_training(recipe("ckpt_path=runs/mine", "name=other"))
    assert other.new_run_dir == tmp_path / "runs" / "other"


def writes(config: DictConfig) -> list[Callable[[], Any]]:
    """Ways to write to a config, at its top and deeper."""
    return [
        lambda: config.__setattr__("eps", 0.1),
        lambda: config.model.__setattr__("width", 3.0),
        lambda: config.sweep.knowledge.append("greybox"),
        lambda: config.sweep.attacks.pop("pgd"),
        lambda: OmegaConf.update(config, "objective.similarity", [1], force_add=True),
    ]


def test_an_attack_or_certificate_that_is_null_is_left_out() -> None:
    def parts(*overrides: str) -> tuple[list[str], list[str]]:
        register_recipes(recipe_files())
        composition = composed(["recipe=standard", *overrides])
        config = read_only(normalised(OmegaConf.create({**stored(composition), "recipe": "standard"})))
        sweep = make(config, "sweep").sweep
        assert list(sweep.attacks) == list(config.sweep.attacks)
        return list(sweep.attacks), list(sweep.certificates)

    common = ("name=a", "run_dir=a")
    attacks = ("sweep.attacks.fgsm=null", "sweep.attacks.worst_case._target_=null")
    assert parts(*common, *attacks)[0] == ["bim", "pgd"]
    proofs = ("sweep.certificates.crown._target_=null", "sweep.certificates.crown_ibp=null")
    assert parts("sweep=certified", *common, *proofs) == (["worst_case", "pgd"], ["ibp"])
    assert not is_left_out({"eps": 0.1})  # an error names what has no _target_


def test_a_run_evaluated_in_another_norm_needs_a_budget_in_it() -> None:
    trained = normalised(recipe("name=a", "run_dir=a"))

    def budget(*overrides: str) -> Any:
        return normalised(overridden(trained, ["run_dir=b", *overrides]))["eps"]

    assert (budget(), budget("norm=linf"), budget("norm=l2", "eps=2")) == (0.3, 0.3, 2)
    with pytest.raises(ConfigError, match=r"no budget goes with MNIST in l2: give eps= in pixel units"):
        budget("norm=l2", "sweep=l2")
    with pytest.raises(ValueError, match=r"norm must be one of linf, l2, got 'l1'"):
        budget("norm=l1")
    trained |= {"norm": "l2", "eps": 2.0}
    assert (budget(), budget("norm=linf"), budget("norm=linf", "eps=0.1")) == (2.0, 0.3, 0.1)


def test_similarities_of_digits_are_refused_for_other_classes(tmp_path: Path) -> None:
    def plan(*overrides: str) -> Any:
        register_recipes(recipe_files())
        config = composed(["recipe=label_embedding_adv", "name=a", f"run_dir={tmp_path / 'run'}", *overrides])
        return plan_training(OmegaConf.create({**stored(config), "recipe": "label_embedding_adv"}))

    with pytest.raises(ConfigError, match=r"of MNIST's classes, and the data are CIFAR10: .*similarity="):
        plan("data=cifar10")
    assert not (tmp_path / "run").exists()
    assert plan("data=cifar10", "objective.outer.similarity=pixels").config.objective.outer.similarity == "pixels"


def test_what_a_recipe_says_of_its_net_is_left_out_for_a_net_that_does_not_take_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def model(*overrides: str) -> dict[str, Any]:
        register_recipes(recipe_files())
        composition = stored(composed(["recipe=cifar10_pgd", "name=a", "run_dir=a", *overrides]))
        found: dict[str, Any] = normalised(OmegaConf.create({**composition, "recipe": "cifar10_pgd"}))["model"]
        return found

    own = ("model=own", "model._target_=torchvision.models.alexnet")
    assert len(model("model=wrn_28_10")["mean"]) == 3
    assert model(*own).keys() == {"_target_", "weights", "mean", "std"}  # it takes anything
    assert not capsys.readouterr().err
    own = ("model=own", "model._target_=torch.nn.Flatten")
    assert model(*own) == {"_target_": "torch.nn.Flatten", "weights": None}
    assert (
        "recipe=cifar10_pgd sets model.mean, model.std, which Flatten does not take: left out"
        in capsys.readouterr().err
    )
    assert "mean" in model(*own, "+model.mean=[0,0,0]")  # refused where the net is built


def test_a_plan_warns_of_a_sweep_in_another_norm(capsys: pytest.CaptureFixture[str]) -> None:
    plan_training(recipe("sweep=linf", "norm=l2", "eps=0.5"))
    assert "take sweep=l2" in capsys.readouterr().err


@pytest.mark.parametrize("sweep", ["linf", "l2"])
def test_a_sweep_begins_with_what_holds(sweep: str) -> None:
    made = make(plan_training(recipe(f"sweep={sweep}", f"norm={sweep}", "eps=0.5")).config, "sweep")
    first = next(iter(made.sweep.attacks.values()))
    assert (first.name, first.norm, first.eps) == ("worst_case", sweep, 0.5)
    assert {attack.norm for attack in made.sweep.attacks.values()} == {sweep}


def test_a_write_to_the_config_raises_once_there_is_a_plan() -> None:
    config = recipe()
    plan = plan_training(config)
    for each in (config, plan.config):
        for write in writes(each):
            with pytest.raises(ReadonlyConfigError):
                write()
    with pytest.raises(AttributeError):
        plan.__setattr__("eps", 0.1)


@pytest.mark.slow
def test_training_and_evaluation_write_nothing_to_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[tuple[Plan, str]] = []

    def kept(plan: Plan) -> Plan:
        plans.append((plan, OmegaConf.to_yaml(plan.config)))
        return plan

    monkeypatch.setattr(train, "plan_training", lambda *given: kept(plan_training(*given)))
    monkeypatch.setattr(evaluate, "plan_evaluation", lambda *given: kept(plan_evaluation(*given)))
    command = "python train.py recipe=standard eps=8/255"
    config = recipe("eps=8/255")
    before = OmegaConf.to_yaml(config)
    assert train.train(config, command=command) == 0
    os.environ.pop("ROBUSTLIT_RUN_DIR", None)
    assert evaluate.evaluate_checkpoint("runs/standard", ["eps=0.1"], command="robustlit evaluate runs/standard") == 0
    assert OmegaConf.to_yaml(config) == before
    assert [OmegaConf.to_yaml(plan.config) for plan, _ in plans] == [then for _, then in plans]
    trained, evaluated = (tmp_path / "runs" / name for name in ("standard", "standard-eval"))
    assert (trained / "command.txt").read_text() == f"{command}\n"
    assert (evaluated / "command.txt").read_text() == "robustlit evaluate runs/standard\n"
    assert OmegaConf.load(evaluated / "config.yaml").ckpt_path == "runs/standard"


def test_sections_are_built_from_a_copy_with_the_values_of_the_whole_recipe() -> None:
    config = read_only({"eps": 0.2, "a": {"_target_": "robustlit.attacks.PGD", "eps": "${eps}"}, "none": None,
                        "deep": {"b": "${a}", "off": {"_target_": None}}})  # fmt: skip
    assert (make(config, "a").eps, make(config, "deep.b").eps) == (0.2, 0.2)
    assert (make(config, "none"), make(config, "deep.off")) == (None, None)
    assert OmegaConf.is_interpolation(config.a, "eps")


def test_nulls_are_filled_in_wherever_a_net_stands() -> None:
    before = {
        "data": {"_target_": "robustlit.data.MNIST", "val_size": 100},
        "model": {"net": {"num_classes": None, "in_chans": 7}},
        "defense": {"part": {"deeper": {"image_size": None}}, "width": None},
        "module": {"in_chans": None, "mean": "${model.net}"},
    }
    filled = fill_from_data(before)
    assert filled["model"]["net"] == {"num_classes": 10, "in_chans": 7}
    assert filled["defense"] == {"part": {"deeper": {"image_size": 28}}, "width": None}
    assert filled["module"] == {"in_chans": 1, "mean": "${model.net}"}
    assert before["model"]["net"]["num_classes"] is None  # type: ignore[index]


@pytest.mark.parametrize("key", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_training_of_no_step_is_refused(key: str, tmp_path: Path) -> None:
    register_recipes(recipe_files())
    config = composed(["recipe=standard", "name=a", f"run_dir={tmp_path / 'run'}", f"++trainer.{key}=0"])
    with pytest.raises(ConfigError, match=rf"trainer\.{key}=0 trains nothing; robustlit evaluate "):
        plan_training(OmegaConf.create({**stored(config), "recipe": "standard"}))
    assert not (tmp_path / "run").exists()


def test_a_class_folder_that_reads_as_a_reference_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "${x}"):
            (tmp_path / part / name).mkdir(parents=True)
    register_recipes(recipe_files())
    config = composed(
        ["recipe=standard", "name=a", f"run_dir={tmp_path / 'run'}", "data=image_folder", f"data.root={tmp_path}",
         "data.image_size=8", "eps=0.1"]
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"the class folder '\$\{x\}' would be read as a reference in the recipe; rename it"
    ):
        plan_training(OmegaConf.create({**stored(config), "recipe": "standard"}))
