"""What a recipe trains and attacks: a classifier, a defense around a trained one, or a module for one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn

from robustlit.experiment.recipes import stored
from robustlit.objectives import Objective, Standard
from robustlit.tracking.console import say
from robustlit.training import CheckpointError, RobustClassifier, load_classifier, read_checkpoint
from robustlit.training.checkpoint import pack

REFERENCE_IMAGES = 10_000  # of the training split, from which an objective learns how alike the classes are


@runtime_checkable
class FittedDefense(Protocol):
    """A defense whose parts are fitted to clean images, without a training loop."""

    def fit(self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int) -> object:
        """Fits to images (N, C, H, W) in [0, 1] and their classes (N,); thresholds to `held_out` ones."""
        ...


@runtime_checkable
class PreparedObjective(Protocol):
    """An objective that learns how alike the classes are, from a trained classifier or from the images."""

    needs_reference: bool
    similarity_matrix: Tensor | None

    def prepare(self, reference: nn.Module | None, images: Tensor, labels: Tensor) -> None:
        """Looks at training images (N, C, H, W) in [0, 1] and their classes (N,)."""
        ...


def make_module(config: DictConfig, data: Any, run: Path) -> pl.LightningModule:
    """What is trained: a classifier, or the recipe's `module`, for a classifier or for the `defense` around one.

    A module takes that as its first argument and the stored recipe as `config`, and has what is attacked as `net`. If
    it has a method `results()`, the plain values of that go to results.json. Of a recipe with a `defense` and no
    `module`, see `fit_defense`.
    """
    if not config.get("module") and not config.get("defense"):
        return _classifier(config, data, run)
    if "generator" in config:
        config.generator = config.generator  # resolved: evaluated again, in another folder, it must be found here
    defended = bool(config.get("defense"))
    if defended and not config.get("base"):
        instantiate(config.defense, instantiate(config.model, _convert_="all"), _convert_="all")  # or raises, in time
    net = _trained(config, data, run, "base" if defended else "victim")
    if defended:
        pl.seed_everything(config.seed, workers=True, verbose=False)  # the same whether its base was trained here
        net = instantiate(config.defense, net, _convert_="all")
        own = OmegaConf.to_container(config.defense, resolve=True)
        assert isinstance(own, dict)
        config.model = {**own, "net": config.model}  # what a checkpoint is rebuilt from
    if not config.get("module"):
        return RobustClassifier(
            net, Standard(), torch.optim.Adam, num_classes=data.num_classes, seed=config.seed, config=stored(config)
        )
    warnings.filterwarnings("ignore", message=r"Found \d+ module.* in eval mode")  # the base, and it is meant
    pl.seed_everything(config.seed, workers=True, verbose=False)
    build = instantiate(config.module, _convert_="all", _partial_=True)
    return build(net, config=stored(config))


def needs_no_training(config: DictConfig) -> bool:
    """Whether the recipe's defense is complete once it stands around a trained classifier and is fitted."""
    return bool(config.get("defense")) and not config.get("module")


def fit_defense(module: pl.LightningModule, data: Any, device: torch.device, seed: int, path: Path) -> None:
    """Fits a defense that has something to fit to the training split, and saves it.

    Args:
        module: has the defense as `net`.
        data: the DataModule: thresholds are set on its validation split.
        device: where to fit.
        seed: of the fit.
        path: where the checkpoint goes.
    """
    defense = module.net
    assert isinstance(defense, nn.Module)
    defense.to(device).eval()
    if isinstance(defense, FittedDefense):
        clean, held_out = ((x.to(device), y.to(device)) for x, y, _ in (data.tensors("train"), data.tensors("val")))
        defense.fit(clean=clean, held_out=held_out, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"net.{name}": value.cpu() for name, value in defense.state_dict().items()}
    torch.save({"state_dict": weights, "robustlit": pack(module.config)}, path)  # type: ignore[arg-type]


def _classifier(config: DictConfig, data: Any, run: Path, objective: Objective | None = None) -> RobustClassifier:
    return RobustClassifier(
        instantiate(config.model, _convert_="all"),
        objective or _objective(config, data, run),
        instantiate(config.optimizer, _convert_="all"),
        num_classes=data.num_classes,
        schedule=instantiate(config.schedule, _convert_="all"),
        validation_attack=None if objective else instantiate(config.validation_attack, _convert_="all"),
        seed=config.seed,
        config=stored(config),
    )


def _objective(config: DictConfig, data: Any, run: Path) -> Objective:
    """The recipe's objective; one that learns from data is shown them, and what it learned is kept in the recipe."""
    if config.ckpt_path is not None:
        learned = ((read_checkpoint(config.ckpt_path)["robustlit"]["config"] or {}).get("objective") or {}).get(
            "similarity"
        )
        if isinstance(learned, list):
            _keep_similarity(config, learned)
    objective = instantiate(config.objective, _convert_="all")
    if isinstance(objective, PreparedObjective) and objective.similarity_matrix is None:
        reference = None
        if objective.needs_reference:
            model = config.model
            reference = _trained(config, data, run, "base")
            config.model = model  # the reference's net may be another
        x, y, _ = data.tensors("train", REFERENCE_IMAGES)
        objective.prepare(reference, x, y)
        assert objective.similarity_matrix is not None
        _keep_similarity(config, objective.similarity_matrix.tolist())
        pl.seed_everything(config.seed, workers=True, verbose=False)  # as if the matrix had been given
    return objective


def _keep_similarity(config: DictConfig, matrix: list[list[float]]) -> None:
    OmegaConf.update(config, "objective.similarity", matrix, merge=False, force_add=True)


def _trained(config: DictConfig, data: Any, run: Path, role: str) -> nn.Module:
    """The classifier that a module or a defense is for: of the checkpoint `role`=..., else `model`, trained first.

    `config.model` becomes what the classifier is rebuilt from.
    """
    if config.get(role):
        net, theirs = load_classifier(config[role])
        assert theirs is not None  # or there would be no net
        check_same_data(theirs, config, role)
        config.model = theirs["model"]
        return net
    classifier = _classifier(config, data, run, Standard() if _learns(config) else _objective(config, data, run))
    if config.ckpt_path is not None and config.get("module"):  # its weights are in there
        return classifier.net
    settings = {**trainer_settings(config), "max_epochs": config.get(f"{role}_epochs", 2), "max_steps": -1}
    trainer = instantiate(
        settings,
        logger=False,
        callbacks=[instantiate(config.callbacks.progress)] if config.callbacks.get("progress") else [],
        enable_checkpointing=False,
        inference_mode=False,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=config.run_dir,
    )
    say(f"no {role}=CHECKPOINT is given: {type(classifier.net).__name__} is trained first")
    trainer.fit(classifier, datamodule=data)
    trainer.save_checkpoint(run / "checkpoints" / f"{role}.ckpt")
    return classifier.net


def _learns(config: DictConfig) -> bool:
    """Whether the recipe's objective is one that needs the classifier that is to be trained first."""
    built = instantiate(config.objective, _convert_="all")
    return isinstance(built, PreparedObjective) and built.needs_reference


def check_same_data(theirs: dict[str, Any], config: DictConfig, role: str) -> None:
    """Raises a CheckpointError when a checkpoint was trained on another data set than the recipe's."""
    trained_on, here = (str(part["data"]["_target_"]).rsplit(".", 1)[-1] for part in (theirs, config))
    if trained_on != here:
        raise CheckpointError(
            f"{role}={config[role]} was trained on {trained_on}, this recipe runs on {here}; give a checkpoint of "
            f"the same data set, or its data= here"
        )


def fill_model(config: DictConfig, data: Any) -> None:
    """Gives nets the number of classes, channels and pixels of the data where the recipe leaves them null."""
    for part in ("model", "defense", "module"):
        if isinstance(config.get(part), DictConfig):
            _fill(config[part], data)


def _fill(node: DictConfig, data: Any) -> None:
    for name in list(node):
        if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name):
            continue
        if name in ("num_classes", "in_chans", "image_size") and node[name] is None:
            node[name] = int(getattr(data, str(name)))
        elif isinstance(node[name], DictConfig):
            _fill(node[name], data)


def auto_precision(accelerator: str) -> str:
    """bf16-mixed where it is fast: on a GPU that has it, on a CPU with its instructions; else 32-true."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if accelerator in ("auto", "cpu") and supported() else "32-true"


def make_trainer(config: DictConfig, callbacks: list[pl.Callback]) -> tuple[pl.Trainer, Any]:
    """The Trainer with all callbacks and the logger, and the sweep among them (None for sweep=none)."""
    sweep = instantiate(config.sweep, _convert_="all") if config.sweep.get("_target_") else None
    callbacks = [instantiate(c, _convert_="all") for c in config.callbacks.values() if c] + callbacks
    callbacks += [sweep] if sweep is not None else []
    if sweep is not None and config.get("verdict"):
        quoted = {"norm": config.norm, "eps": float(config.eps)}
        node = {"_target_": "robustlit.callbacks.Verdict", "profile": config.verdict, **quoted, "seed": config.seed}
        callbacks.append(instantiate({**node, "folder": f"{config.run_dir}/evaluation"}))
    logger: Any = False  # last: it speaks to a server, which need not hear of a run that cannot start
    if config.logger.get("_target_"):
        logger = instantiate(config.logger, _convert_="all")
    if isinstance(logger, WandbLogger):
        resolved = OmegaConf.to_container(config, resolve=True)
        logger.log_hyperparams({str(k): v for k, v in resolved.items()} if isinstance(resolved, dict) else {})
    trainer = instantiate(
        trainer_settings(config),
        logger=logger,
        callbacks=callbacks,
        inference_mode=False,  # attacks differentiate during evaluation
        use_distributed_sampler=False,  # the loaders share batches out themselves, and repeat none
        enable_model_summary=False,
        default_root_dir=config.run_dir,
    )
    return trainer, sweep


def trainer_settings(config: DictConfig) -> dict[str, Any]:
    settings = {str(k): v for k, v in config.trainer.items()}
    if settings["precision"] == "auto":
        settings["precision"] = auto_precision(settings["accelerator"])
    return settings
