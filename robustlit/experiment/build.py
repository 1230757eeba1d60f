"""Build what a plan trains and attacks: a classifier, a defense around a trained one, or a module for one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from robustlit.classifier import check_finite
from robustlit.experiment.layout import lay_channels_last
from robustlit.experiment.own_net import recipes_net, weights_of, without_weights
from robustlit.experiment.plan import Plan, Recipe, make
from robustlit.experiment.preflight import check_classes, check_takes
from robustlit.experiment.recipes import ConfigError, stored
from robustlit.experiment.trainer import make_trainer
from robustlit.files import write_tensors
from robustlit.objectives import Objective, Standard
from robustlit.tracking.console import is_main_process, say
from robustlit.training import CheckpointError, RobustClassifier, load_classifier
from robustlit.training.checkpoint import pack

REFERENCE_IMAGES = 10_000  # of the training split, from which an objective learns how alike the classes are


def build_data(plan: Plan) -> Any:
    """Return the DataModule; the main process loads its data, so that a run without data fails at once."""
    data = make(plan.config, "data")
    if is_main_process():
        data.prepare_data()
        data.setup("fit")
        if plan.resumed is not None:
            check_classes(plan.resumed.recipe, data, plan.resumed.checkpoint)
    return data


def build_module(plan: Plan, data: Any) -> tuple[Any, Recipe]:
    """Build the classifier, or the recipe's `module`, for a classifier or for the `defense` around one.

    A module takes the classifier as its first argument and the stored recipe as `config`. A recipe with a `defense`
    and no `module` needs `fit_defense` afterwards.

    Returns:
        The module, which holds what is attacked as `net`, and the recipe to store: the plan's, completed by what was
        learned while building. The values of the module's method `results()`, if it has one, go to results.json.
    """
    defended, config = bool(plan.config.get("defense")), plan.config
    if not config.get("module") and not defended:
        net = recipes_net(config, filled=plan.resumed is None)  # a resumed run has its weights in the checkpoint
        objective, recipe = _prepared_objective(plan, data)
        _keep_weights(objective, config.model)
        checks = {name: make(config, name) for name in ("validation_attack", "validation_certificate")}
        return _classifier(plan, data, net, objective, recipe, **checks), recipe
    if defended and not config.get("base"):
        make(config, "defense", recipes_net(config, filled=False))  # raises before anything is trained for nothing
    net, recipe = _pretrained(plan, data)
    if defended:
        # So that it does not matter whether the classifier was trained here.
        pl.seed_everything(plan.seed, workers=True, verbose=False)
        net = make(config, "defense", net)
        own: Any = OmegaConf.to_container(config.defense, resolve=True)
        recipe = {**recipe, "model": {**own, "net": recipe["model"]}}
    recipe = without_weights(recipe)
    if not config.get("module"):
        return module_to_evaluate(net, data.num_classes, plan.seed, recipe), recipe
    warnings.filterwarnings("ignore", message=r"Found \d+ module.* in eval mode")  # the classifier is meant to be
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    module = make(config, "module", _partial_=True)(net, config=recipe)
    module.on_non_finite = config.get("on_non_finite", "stop")  # of no effect on a module that guards nothing
    return module, recipe


def fit_defense(module: Any, data: Any, device: torch.device, seed: int, path: Path) -> None:
    """Save a module's defense at `path`, after its method `fit`, if it has one.

    `fit(*, clean, held_out, seed)` takes images (N, C, H, W) in [0, 1] and classes (N,) of the training split, and of
    the validation split for thresholds.
    """
    defense: Any = module.net
    defense.to(device).eval()
    if hasattr(defense, "fit"):
        clean, held_out = ((x.to(device), y.to(device)) for x, y, _ in (data.tensors("train"), data.tensors("val")))
        defense.fit(clean=clean, held_out=held_out, seed=seed)
    check_finite(defense, f"{type(defense).__name__} was fitted to", ValueError)
    weights = {f"net.{name}": value.cpu() for name, value in defense.state_dict().items()}
    write_tensors(path, {"state_dict": weights, "robustlit": pack(module.config)})


def module_to_evaluate(net: nn.Module, num_classes: int, seed: int, recipe: Recipe | None = None) -> RobustClassifier:
    """Return a module around a net that is only evaluated."""
    return RobustClassifier(net, Standard(), torch.optim.Adam, num_classes=num_classes, seed=seed, config=recipe)


def _classifier(
    plan: Plan, data: Any, net: nn.Module, objective: Objective, recipe: Recipe, **checks: Any
) -> RobustClassifier:
    optimizer, schedule = make(plan.config, "optimizer"), make(plan.config, "schedule")
    if plan.config.get("channels_last"):
        lay_channels_last(net, data)
    classifier = RobustClassifier(
        net, objective, optimizer, num_classes=data.num_classes, schedule=schedule, seed=plan.seed,
        compile_net=plan.config.get("compile", False), config=without_weights(recipe), **checks,
    )  # fmt: skip
    classifier.on_non_finite = plan.config.get("on_non_finite", "stop")
    return classifier


def _prepared_objective(plan: Plan, data: Any) -> tuple[Objective, Recipe]:
    """Return the recipe's objective, and the recipe with what the objective learned from the data.

    An objective with `prepare(reference, images, labels)` and a `similarity_matrix` of None learns how alike the
    classes are, from images (N, C, H, W) and classes (N,) or, where it `needs_reference`, from a trained classifier.
    """
    objective, recipe = make(plan.config, "objective"), stored(plan.config)
    if (learns := _learning(objective)) is not None:
        reference = _pretrained(plan, data)[0] if learns.needs_reference else None
        x, y, _ = data.tensors("train", REFERENCE_IMAGES)
        learns.prepare(reference, x, y)
        learned = {"similarity": learns.similarity_matrix.tolist()}
        if learns is not objective:
            learned = {"outer": {**recipe["objective"]["outer"], **learned}}
        recipe["objective"] = {**recipe["objective"], **learned}
        pl.seed_everything(plan.seed, workers=True, verbose=False)  # as if the matrix had been given
    return objective, recipe


def _keep_weights(objective: Any, model: DictConfig) -> None:
    """Let an objective that draws weights anew at its first step (`initialise`) leave trained ones as they are."""
    trained = model.get("weights") is not None or model.get("pretrained")
    if trained and getattr(objective, "initialise", False):
        objective.initialise = False
        say(f"{type(objective).__name__} keeps the trained weights: none are drawn anew")


def _learning(objective: Any) -> Any:
    """Return the objective, or the one that an adversarial objective holds, that has yet to learn from the data."""
    for each in (objective, getattr(objective, "outer", None)):
        if getattr(each, "similarity_matrix", False) is None:
            return each
    return None


def _pretrained(plan: Plan, data: Any) -> tuple[nn.Module, Recipe]:
    """Return the classifier to start from, and the recipe with the `model` that it is rebuilt from.

    It comes from the checkpoint `base=` or `victim=`, or from `model` with the file `model.weights`; without either,
    `model` is trained first and its checkpoint saved.
    """
    config = plan.config
    role = "victim" if config.get("module") and not config.get("defense") else "base"
    weights = weights_of(config.model)
    if checkpoint := config.get(role):
        if weights is not None:
            raise ConfigError(
                f"{role}={checkpoint} and model.weights={weights} both give the classifier: leave one out"
            )
        net, theirs = load_classifier(checkpoint)
        assert theirs is not None  # or there would be no net
        if not isinstance(theirs.get("data"), dict):
            raise CheckpointError(f"the recipe in {role}={checkpoint} has no section data; it is damaged")
        trained_on, here = (str(recipe["data"].get("_target_")).rsplit(".", 1)[-1] for recipe in (theirs, config))
        if trained_on != here:
            raise CheckpointError(
                f"{role}={checkpoint} was trained on {trained_on}, this recipe runs on {here}; give a checkpoint of "
                "the same data set, or its data= here"
            )
        check_takes(net, data, f"{role}={checkpoint}", theirs)
        return net, {**stored(config), "model": theirs["model"]}
    objective, recipe = cast(Objective, Standard()), without_weights(stored(config))
    if weights is not None:
        return recipes_net(config, filled=plan.resumed is None or not config.get("module")).eval(), recipe
    learning = _learning(make(config, "objective"))
    if learning is None or not learning.needs_reference:  # else it needs what is trained here
        objective, recipe = _prepared_objective(plan, data)
    classifier = _classifier(plan, data, recipes_net(config), objective, recipe)
    if plan.resumed is not None and config.get("module"):  # its weights are in that checkpoint
        return classifier.net, recipe
    say(f"no {role}=CHECKPOINT is given: {type(classifier.net).__name__} is trained first")
    progress = [make(config, "callbacks.progress")] if config.callbacks.get("progress") else []
    length = {"max_epochs": config.get(f"{role}_epochs", 2), "max_steps": -1}
    trainer = make_trainer(plan, progress, logger=False, enable_checkpointing=False, **length)
    trainer.fit(classifier, datamodule=data)
    trainer.save_checkpoint(plan.run_dir / "checkpoints" / f"{role}.ckpt")
    return classifier.net, recipe
