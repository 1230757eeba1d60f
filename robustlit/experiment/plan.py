"""The plan of a run: the composed recipe, checked, completed and read once. Nothing writes to it afterwards."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robustlit.experiment import recipes
from robustlit.experiment.recipes import ConfigError, read_only
from robustlit.experiment.run_folder import Resumed, exactly, make_run_dir, numbered, read_resumed
from robustlit.threat import check_eps

Recipe = dict[str, Any]
_SHAPE = ("num_classes", "in_chans", "image_size")


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    name: str  # of the run
    run_dir: Path  # which exists
    seed: int
    eps: float  # the budget that is trained for and quoted, in pixel units
    norm: str
    trainer: Mapping[str, Any]  # arguments of the Trainer, its precision decided
    resumed: Resumed | None  # the checkpoint to resume from
    command: str | None  # the command line, as typed
    config: DictConfig  # the whole recipe, read-only; `make` builds its sections

    @property
    def new_run_dir(self) -> Path | None:
        """The run directory where this run created it, None where it resumes in an existing one."""
        return None if self.resumed and self.resumed.run_dir == self.run_dir else self.run_dir


def plan_training(config: DictConfig, command: str | None = None) -> Plan:
    """Return the plan of a training run, and create its directory.

    Args:
        config: The composed recipe, which is set read-only.
        command: The command line, to be stored with the run.

    Raises:
        ConfigError, ValueError, DataError, CheckpointError, FileExistsError: The run is not possible.
    """
    recipe = normalised(config)
    resumed = None
    if recipe["ckpt_path"] is not None:
        if fits_defense(recipe):
            raise ConfigError(
                "there is nothing to resume: this recipe fits a defense in one go; leave ckpt_path out, and give a "
                "trained classifier as base=RUN (runs/NAME/checkpoints/base.ckpt, where an earlier run trained one)"
            )
        resumed = read_resumed(recipe["ckpt_path"])
        recipe["ckpt_path"] = resumed.checkpoint
        learned = (resumed.recipe.get("objective") or {}).get("similarity")
        if isinstance(learned, list):  # the matrix that the objective learned at first
            recipe["objective"] = {**recipe["objective"], "similarity": learned}
    recipe = _with_run_id(fill_shapes(recipe), resumed)
    run_dir = _training_dir(recipe, resumed)
    recipe |= {"run_dir": str(run_dir), "name": recipe["name"] or run_dir.name}
    if recipe.get("generator") and (recipe.get("module") or recipe.get("defense")):
        # Evaluated again, in another directory, it must be found here.
        recipe["generator"] = read_only(recipe).generator
    return _plan(recipe, resumed, command)


def plan_evaluation(config: DictConfig, origin: str, command: str | None = None) -> Plan:
    """Return the plan of an evaluation, and create its directory, `runs/NAME-eval` unless `run_dir` is set.

    Args:
        config: The recipe of the training, as changed by overrides; it is set read-only.
        origin: Where the net comes from, stored as `ckpt_path`.
        command: See `plan_training`.
    """
    recipe = normalised(config)
    if "job_type" in recipe["logger"]:
        group = read_only(recipe).logger.get("group") or recipe["name"]
        recipe["logger"] |= {"job_type": "eval", "group": group, "run_id": uuid.uuid4().hex[:8]}
    if recipe["run_dir"]:
        run_dir = make_run_dir(Path(recipe["run_dir"]), exactly)
    else:
        run_dir = make_run_dir(Path("runs") / f"{recipe['name']}-eval", numbered)
    return _plan({**recipe, "run_dir": str(run_dir), "name": run_dir.name, "ckpt_path": origin}, None, command)


def normalised(config: DictConfig) -> Recipe:
    """Return a composed recipe as plain containers, checked, its fractions read; the config becomes read-only."""
    OmegaConf.set_readonly(config, True)
    recipe: Recipe = recipes.read_fractions({**recipes.stored(config), "recipe": config.recipe})
    checked = read_only(recipe)
    recipes.check_keys(checked)
    check_eps(checked.eps, checked.norm)  # before the interpolations that multiply it
    recipes.check_complete(checked)
    recipes.check_verdict(checked)
    return recipe


def make(config: DictConfig, section: str, *arguments: Any, **more: Any) -> Any:
    """Build what a section of a recipe names, such as "callbacks.progress", with further arguments; None if null."""
    node = OmegaConf.select(config, section)
    if node is None or node.get("_target_", "") is None:
        return None
    own = OmegaConf.create({})  # a copy of the section, as Hydra resolves interpolations in place
    OmegaConf.update(own, section, OmegaConf.to_container(node, resolve=True), force_add=True)
    return instantiate(OmegaConf.select(own, section), *arguments, _convert_="all", **more)


def fits_defense(recipe: Mapping[str, Any] | DictConfig) -> bool:
    """Return whether the recipe's defense is fitted around a trained classifier, without a training loop."""
    return bool(recipe.get("defense")) and not recipe.get("module")


def fill_shapes(recipe: Recipe) -> Recipe:
    """Return a recipe with the classes, channels and pixels of its data where its nets leave them null."""
    data = make(read_only(recipe), "data")
    nets = {part: recipe[part] for part in ("model", "defense", "module") if isinstance(recipe.get(part), dict)}
    return {**recipe, **{part: _filled(net, data) for part, net in nets.items()}}


def _filled(node: dict[str, Any], data: Any) -> dict[str, Any]:
    filled = {key: _filled(value, data) if isinstance(value, dict) else value for key, value in node.items()}
    return filled | {key: int(getattr(data, key)) for key in _SHAPE if key in node and node[key] is None}


def _with_run_id(recipe: Recipe, resumed: Resumed | None) -> Recipe:
    """Return a recipe with its W&B run: a sweep's, else that of the resumed checkpoint, else a new one."""
    logger = recipe["logger"]
    if "run_id" not in logger:
        return recipe
    run_id = logger["run_id"] or uuid.uuid4().hex[:8]
    if resumed is not None:
        run_id = resumed.recipe.get("logger", {}).get("run_id") or run_id
    if os.environ.get("WANDB_SWEEP_ID"):  # `wandb agent` chose it, and W&B obeys the agent
        run_id = os.environ.get("WANDB_RUN_ID") or run_id
    return {**recipe, "logger": {**logger, "run_id": str(run_id)}}


def _training_dir(recipe: Recipe, resumed: Resumed | None) -> Path:
    """Create `run_dir`, else runs/NAME, else runs/RECIPE numbered to be new; a resumed run keeps its own."""
    if recipe["run_dir"] or recipe["name"]:
        return make_run_dir(Path(recipe["run_dir"] or f"runs/{recipe['name']}"), exactly)
    if resumed is not None and resumed.run_dir is not None:
        return make_run_dir(resumed.run_dir, Path)
    return make_run_dir(Path("runs") / recipe["recipe"], numbered)


def _plan(recipe: Recipe, resumed: Resumed | None, command: str | None) -> Plan:
    config = read_only(recipe)
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    if trainer["precision"] == "auto":
        trainer["precision"] = auto_precision(trainer["accelerator"])
    return Plan(
        name=config.name, run_dir=Path(config.run_dir), seed=config.seed, eps=float(config.eps), norm=str(config.norm),
        trainer=trainer, resumed=resumed, command=command, config=config,
    )  # fmt: skip


def auto_precision(accelerator: str) -> str:
    """Return bf16-mixed where it is fast (a GPU that has it, a CPU with its instructions), else 32-true."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if accelerator in ("auto", "cpu") and supported() else "32-true"
