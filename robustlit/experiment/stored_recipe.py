"""Make a stored recipe, which may come from a stranger, one that can be evaluated here.

Its paths, names and what it would read, write, download or start on this machine are replaced by the defaults of this
program, or must be given by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustlit import attacks, certify, data
from robustlit.attacks import Attack
from robustlit.certify import Certificate
from robustlit.data.base import ClassificationData
from robustlit.data.downloads import DownloadedDataModule
from robustlit.data.pictures import usable_cores
from robustlit.experiment.plan import Plan
from robustlit.experiment.recipes import read_only
from robustlit.training.checkpoint import CheckpointError
from robustlit.training.stored import check_names, classes_of, one_line, plain_values, shown

_ATTACKS = classes_of(attacks, Attack)
_CERTIFICATES = classes_of(certify, Certificate)
_DATA = classes_of(data, ClassificationData)
_CALLBACKS = frozenset(
    f"robustlit.callbacks.{name}"
    for name in ("AdversarialImages", "AttackSweep", "CatastrophicOverfitting", "ImagesByEps", "Progress",
                 "SaveOnInterrupt", "Verdict")
)  # fmt: skip
# Loggers that write files, with the settings by which they write into the run's directory.
_IN_FOLDER = {"save_dir": "${run_dir}", "version": ""}
_FILES_OF: dict[str, dict[str, Any]] = {
    "pytorch_lightning.loggers.CSVLogger": {"name": "csv", **_IN_FOLDER},
    "pytorch_lightning.loggers.TensorBoardLogger": {"name": "tensorboard", "default_hp_metric": False, **_IN_FOLDER},
}
# What each section that an evaluation builds may name; the net has its own list.
ALLOWED = {
    "data": _DATA,
    "sweep": _ATTACKS | _CERTIFICATES | _DATA | {"robustlit.callbacks.AttackSweep", "robustlit.data.Examples"},
    "callbacks": _ATTACKS | _CALLBACKS | _DATA | {"robustlit.data.Examples"},
    "trainer": frozenset({"pytorch_lightning.Trainer"}),
    "logger": frozenset({*_FILES_OF, "robustlit.callbacks.wandb_logger"}),
}
MISSING = "???"  # a value that the caller must give
_DOWNLOADED = classes_of(data, DownloadedDataModule)
_SCALARS: dict[str, tuple[type, ...]] = {"recipe": (str,), "norm": (str,), "eps": (int, float, str), "seed": (int,)}
# Arguments of the Trainer that neither write nor load anything.
_OF_TRAINER = {
    "_target_", "accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs", "min_epochs",
    "max_steps", "min_steps", "max_time", "limit_train_batches", "limit_val_batches", "limit_test_batches",
    "limit_predict_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val",
    "gradient_clip_algorithm", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps",
    "num_sanity_val_steps", "deterministic", "benchmark", "fast_dev_run", "detect_anomaly", "enable_progress_bar",
    "sync_batchnorm",
}  # fmt: skip
_PROJECT = re.compile(r"[\w.-]{1,128}")
_IN_RUN_DIR = re.compile(r"\$\{run_dir\}(/[\w-][\w.-]*)*")
_WRITTEN = {"folder": "${run_dir}/evaluation", "path": "${run_dir}/checkpoints/last.ckpt"}
_READ = ("substitute", "generator", "root")  # files and folders that a class here opens
_CORES = usable_cores()
_AT_MOST = {"num_workers": _CORES, "count": 100}  # processes; images in one picture


def sanitized_recipe(recipe: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """Return a stored recipe without the paths of who stored it, and without what starts or reaches more than a run.

    What is written goes into this run's directory; a file or folder to be read is `???`, so that the caller must give
    it, except the generator beside the checkpoint and the folder data/ of downloaded data, which nothing downloads.
    """
    for section in ("model", *ALLOWED):
        if not isinstance(recipe.get(section), dict):
            raise CheckpointError(f"the recipe in {checkpoint} has no section {section}; it is damaged or not complete")
    for key, kinds in _SCALARS.items():
        if not isinstance(recipe.get(key), kinds):
            raise CheckpointError(f"the recipe in {checkpoint} has {key}={shown(recipe.get(key))}; it is damaged")
    own: dict[str, Any] = {key: _reset(value) for key, value in recipe.items()}
    own |= {"run_dir": None, "ckpt_path": None, "resume": None, "min_robust": None, "name": recipe.get("name")}
    if recipe.get("generator") is not None:
        place = Path(checkpoint)
        beside = (place / "checkpoints" if place.is_dir() else place.parent) / "generator.pt"
        own["generator"] = str(beside.absolute()) if beside.is_file() else MISSING
    return own | {"trainer": _trainer(own["trainer"]), "logger": _logger(own["logger"])}


def _reset(node: Any) -> Any:
    """Return a part of a recipe with its paths replaced, except in classes that are not of robustlit."""
    if isinstance(node, list):
        return [_reset(value) for value in node]
    if not isinstance(node, dict):
        return node
    target = node.get("_target_") or "robustlit."
    if not str(target).startswith("robustlit."):
        return {key: _reset(value) if isinstance(value, (dict, list)) else value for key, value in node.items()}
    found = {key: _reset_value(key, value) for key, value in node.items()}
    if target in _DOWNLOADED:
        found |= {"root": "data", "download": False}
    return found


def _reset_value(key: str, value: Any) -> Any:
    if key in _WRITTEN and value is not None:
        return value if isinstance(value, str) and _IN_RUN_DIR.fullmatch(value) else _WRITTEN[key]
    if key in _READ and isinstance(value, str) and value != f"${{{key}}}":
        return MISSING
    if key in _AT_MOST and value is not None:
        return value if isinstance(value, int) and value <= _AT_MOST[key] else _AT_MOST[key]
    return _reset(value)


def _trainer(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key in _OF_TRAINER and not isinstance(value, dict)}
    if not isinstance(kept.get("strategy", "auto"), str):
        kept["strategy"] = "auto"
    if isinstance(devices := kept.get("devices"), (int, str)) and str(devices).isdigit() and int(devices) > _CORES:
        kept["devices"] = 1  # each is a process
    return {"_target_": None, "accelerator": "auto", "devices": 1, "precision": "auto", **kept}


def _logger(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a logger that logs into this run's directory, or to the caller's own W&B account."""
    target = settings.get("_target_")
    if target in _FILES_OF:
        return {"_target_": target, **_FILES_OF[target]}
    if target != "robustlit.callbacks.wandb_logger":
        return settings
    project, group, tags = settings.get("project"), settings.get("group"), settings.get("tags")
    return {
        "_target_": target,
        "project": project if isinstance(project, str) and _PROJECT.fullmatch(project) else "robustlit",
        "name": "${name}",
        "group": group if isinstance(group, str) else "${name}",
        "job_type": "eval",
        "run_id": None,
        "folder": "${run_dir}",
        "tags": [str(tag) for tag in tags] if isinstance(tags, list) else None,
    }


def resolved_plan(plan: Plan, trusted: Sequence[str]) -> Plan:
    """Return a plan whose config has no references left, after checking every section that an evaluation builds.

    Raises:
        CheckpointError: A section names what it may not, or a reference leads nowhere.
    """
    try:
        config: Any = OmegaConf.to_container(plan.config, resolve=True)
    except OmegaConfBaseException as error:
        raise CheckpointError(f"the checkpoint's recipe cannot be resolved: {one_line(error)}") from error
    config = plain_values(config)
    for section, allowed in ALLOWED.items():
        check_names(config[section], allowed, trusted, section=section)
    trainer = {**config["trainer"], "precision": plan.trainer["precision"]}
    return replace(plan, config=read_only(config), trainer=trainer)
