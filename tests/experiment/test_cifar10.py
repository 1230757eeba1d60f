"""The recipes for CIFAR-10 hold the settings that their papers publish; eps goes with the data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from robustlit.experiment.composition import composed
from robustlit.experiment.plan import normalised
from robustlit.experiment.recipes import ConfigError, recipe_files, register_recipes, stored
from robustlit.objectives import NFGSM, TRADES, AdversarialTraining, AdversarialWeightPerturbation

PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10_pgd": {"net": "PreActResNet", "lr": 0.1, "weight_decay": 5e-4, "epochs": 30, "milestones": [0.5, 0.75]},
    "cifar10_trades": {"net": "WideResNet", "lr": 0.1, "weight_decay": 2e-4, "epochs": 100, "milestones": [0.75, 0.9]},
    "cifar10_awp": {"net": "PreActResNet", "lr": 0.1, "weight_decay": 5e-4, "epochs": 200, "milestones": [0.5, 0.75]},
    "cifar10_fast": {"net": "PreActResNet", "lr": 0.2, "weight_decay": 5e-4, "epochs": 30, "milestones": None},
}


def recipe(*overrides: str) -> Any:
    register_recipes(recipe_files())
    config = composed([*overrides, "name=x"])
    return OmegaConf.create(normalised(OmegaConf.create({**stored(config), "recipe": "any"})))


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_published(name: str) -> None:
    config, published = recipe(f"recipe={name}"), PUBLISHED[name]
    assert config.data._target_ == "robustlit.data.CIFAR10"
    assert (config.data.augment, config.data.batch_size, config.data.val_size) == (True, 128, 1000)
    assert config.model._target_ == f"robustlit.models.{published['net']}"
    assert config.eps == 8 / 255
    assert config.sweep.grid.linf == pytest.approx([2 / 255, 4 / 255, 8 / 255, 12 / 255])
    assert config.trainer.max_epochs == published["epochs"]
    optimizer = instantiate(config.optimizer)([torch.zeros(1, requires_grad=True)])
    assert isinstance(optimizer, torch.optim.SGD)
    settings = optimizer.param_groups[0]
    assert [settings[key] for key in ("lr", "momentum", "weight_decay")] == [
        published["lr"],
        0.9,
        published["weight_decay"],
    ]
    assert config.schedule.get("milestones") == published["milestones"]
    objective = instantiate(config.objective)
    inner = objective.objective if isinstance(objective, AdversarialWeightPerturbation) else objective
    step = inner.attack.step_over_eps * inner.attack.eps
    if isinstance(objective, AdversarialWeightPerturbation):
        assert objective.gamma == 0.01
    if isinstance(inner, TRADES):
        assert (inner.beta, inner.start_noise, inner.attack.random_start, inner.attack.steps) == (6, 1e-3, False, 10)
        assert step * 0.031 / (8 / 255) == pytest.approx(0.007)
    elif isinstance(inner, NFGSM):
        assert (inner.noise, step) == (2, 8 / 255)
    else:
        assert isinstance(inner, AdversarialTraining)
        assert (inner.attack.steps, step) == (10, pytest.approx(2 / 255))


def test_a_cycle_starts_and_ends_next_to_0() -> None:
    config = recipe("recipe=cifar10_fast")
    optimizer = instantiate(config.optimizer)([torch.zeros(1, requires_grad=True)])
    schedule = instantiate(config.schedule)(optimizer, total_steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["momentum"] == 0.9
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.2, rel=0.05)
    assert 45 <= rates.index(max(rates)) <= 50
    assert rates[0] < 1e-3
    assert rates[-1] < 1e-3


@pytest.mark.parametrize(
    ("data", "eps"),
    [("mnist", 0.3), ("fashion_mnist", 0.1), ("cifar10", 8 / 255), ("cifar100", 8 / 255), ("svhn", 8 / 255)],
)
def test_eps_goes_with_the_data(data: str, eps: float) -> None:
    config = recipe("recipe=pgd_adv_train", f"data={data}")
    assert (config.eps, config.objective.attack.eps, config.validation_attack.eps) == (eps, eps, eps)
    assert config.sweep.grid.linf[2] == eps


def test_data_without_a_usual_budget_ask_for_one() -> None:
    folder = ("recipe=standard", "data=image_folder", "data.root=x", "data.image_size=32")
    with pytest.raises(ConfigError, match=r"no budget goes with ImageFolder in linf: give eps=.*8/255"):
        recipe(*folder)
    assert recipe(*folder, "eps=8/255").eps == 8 / 255
    with pytest.raises(ConfigError, match=r"no budget goes with CIFAR10 in l2: give eps=.*0.5 on CIFAR-10"):
        recipe("recipe=cifar10_pgd", "norm=l2")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_trains(name: str, run: Callable[..., int], tmp_path: Path) -> None:
    os.chdir(tmp_path)
    net = ("model.depth=10", "model.width=1") if name == "cifar10_trades" else ("model.width=4",)
    small = ("data=mnist", "data.train_size=100", "data.val_size=40", "data.test_size=20", "trainer.max_epochs=1")
    grey = () if name == "cifar10_trades" else ("model.mean=null", "model.std=null")
    more = ("trainer.precision=32-true", "trainer.accelerator=cpu", "logger=none", "sweep=none", "name=x")
    assert run("train", f"recipe={name}", *small, *net, *grey, *more) == 0
    assert (tmp_path / "runs" / "x" / "checkpoints" / "best.ckpt").is_file()
