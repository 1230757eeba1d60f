"""Write and read checkpoints without running code from them.

A checkpoint may come from an untrusted source. It is read with `weights_only=True`, its recipe holds plain values, and
what it may name are robustlit's own nets and defenses, see `robustlit.training.stored`.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from robustlit.classifier import check_finite
from robustlit.training.foreign import way_in, what_it_seems
from robustlit.training.stored import (
    NETS,
    CheckpointError,
    check_names,
    check_training_state,
    checked_recipe,
    one_line,
    plain_values,
    shown,
)

FORMAT = 1
# What Lightning needs to resume.
_OF_TRAINING = ("epoch", "global_step", "pytorch-lightning_version", "loops", "optimizer_states", "lr_schedulers")
_ZIP = b"PK\x03\x04"
_MOST_CLASSES = 25_000  # ImageNet-21k has 21 843; a matrix of classes by classes must fit into memory
_FREE = 2**26  # bytes of parameters that a net may always have
_TIMM = "robustlit.models.TimmNet"


def pack(config: dict[str, Any] | None) -> dict[str, Any]:
    """Return what robustlit adds to a checkpoint: the format and the composed recipe."""
    return {"format": FORMAT, "config": config}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of robustlit without running code from it.

    Args:
        path: The file, or a run folder (then its best checkpoint).

    Returns:
        What the file holds; its recipe, if it has one, is a checked copy (see `checked_recipe`).

    Raises:
        CheckpointError: Missing, unreadable, not written by robustlit, or with a recipe or weights of unknown kinds.
    """
    path = Path(path)
    if path.is_dir():
        path = best_of(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}; give a .ckpt file or a run folder (runs/NAME) that holds one"
        )
    try:
        # Opened once: what is checked is what is read.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensors of kinds that are refused below
            _check_archive(file)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile raise many kinds for a damaged file
        seems = what_it_seems(path, error)
        raise CheckpointError(f"{path} is not a checkpoint that can be read safely: {seems}") from error
    ours = checkpoint.get("robustlit") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path} was not written by robustlit: it holds no recipe to rebuild the net from; for weights of a net of "
            f"yours: {way_in(path)}, or call robustlit.evaluate(model, data, attacks)"
        )
    if type(ours.get("format")) is not int or ours["format"] != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {shown(ours.get('format'))}, this version reads {FORMAT}")
    _check_sections(checkpoint, path)
    config = None if ours["config"] is None else checked_recipe(ours["config"])
    weights = _checked_weights(checkpoint["state_dict"], path)
    return {**checkpoint, "state_dict": weights, "robustlit": {**ours, "config": config}}


def _check_archive(file: BinaryIO) -> None:
    """Raise a ValueError unless a file is a zip as large as its contents: torch.save compresses nothing."""
    if file.read(len(_ZIP)) != _ZIP:  # torch would take it for a file of its old format
        raise ValueError("not a zip")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
            raise ValueError("compressed, or larger inside than outside")
        if (bad := archive.testzip()) is not None:  # torch.load does not compare the weights with their check sums
            raise ValueError(f"the check sum of {bad} is wrong")
    file.seek(0)


def _checked_weights(state: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict as a plain dict, after checking that each tensor of the net lies in memory as it seems."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds weights that are no state dict but a {type(state).__name__}")
    for name, tensor in state.items():
        if type(name) is not str or not name.isprintable():
            raise CheckpointError(f"{path} holds weights named {shown(name)}; it is damaged")
        if not name.startswith("net."):
            continue
        kind = type(tensor)
        if kind not in (Tensor, nn.Parameter):
            raise CheckpointError(f"{path} holds {shown(name)} as a {kind.__name__}, not as a tensor; it is damaged")
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # An expanded tensor needs no more of the file than one number, and any amount of memory in a net.
        if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} holds {shown(name)} as a sparse, quantised or expanded tensor")
    return dict(state)


def _check_sections(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a CheckpointError where a part of a checkpoint is missing or of another type."""
    config, wrong = checkpoint["robustlit"].get("config", ...), None
    if config is ...:
        wrong = "no config (the recipe, or null)"
    elif config is not None and not isinstance(config, dict):
        wrong = f"a config that is no mapping but {type(config).__name__}"
    if wrong is not None:
        raise CheckpointError(
            f"{path} holds {wrong}: it is damaged or of another version; train again, or take another"
        )


def check_resumable(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise a CheckpointError unless a training can be resumed from what `read_checkpoint` returned."""
    check_training_state(checkpoint, str(path))
    if missing := [key for key in _OF_TRAINING if key not in checkpoint]:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}, so no training can be resumed from it (it holds a net alone, is "
            "damaged or of another version); robustlit evaluate and base= take it, or give another ckpt_path"
        )


def best_of(run: Path) -> Path:
    """Return a run folder's best checkpoint by validation robust accuracy, else its last."""
    for name in ("best.ckpt", "last.ckpt"):
        if (run / "checkpoints" / name).is_file():
            return run / "checkpoints" / name
    raise CheckpointError(f"{run} is a folder without checkpoints/best.ckpt or last.ckpt; it is not a finished run")


def load_classifier(
    path: str | Path, *, net: nn.Module | None = None, trusted: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return the net of a checkpoint, with its weights, in eval mode, on the CPU.

    Args:
        path: The file, or a run folder (then its best checkpoint).
        net: The net to fill; None builds it from the stored recipe.
        trusted: Packages of your own that the recipe may name classes from.

    Returns:
        The net and the stored recipe (None where there is none).

    Raises:
        CheckpointError: See `read_checkpoint`; also a net that cannot be rebuilt or does not fit the weights, and
            weights that are not finite.
    """
    return classifier_of(read_checkpoint(path), str(path), net=net, trusted=trusted)


def classifier_of(
    checkpoint: dict[str, Any], path: str, *, net: nn.Module | None = None, model: Any = None,
    trusted: Sequence[str] = (),
) -> tuple[nn.Module, dict[str, Any] | None]:  # fmt: skip
    """Return what `load_classifier` does, from what `read_checkpoint` returned; `model` replaces the net's recipe."""
    config = checkpoint["robustlit"]["config"]
    weights = {k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")}
    if net is None:
        if config is None:
            why = "holds weights but no recipe (it was trained from Python)"
            raise CheckpointError(f"{path} {why}; pass the net: load_classifier(path, net=MyNet())")
        if model is None:
            model = resolved_model(config, path)
            config = {**config, "model": model}
        net = build_net(model, weights, trusted)
    _load(net, weights, path)
    check_finite(net, f"{path} holds", CheckpointError)
    return net.eval(), config


def resolved_model(config: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the `model` of a stored recipe, its references to other keys replaced."""
    if not isinstance(config.get("model"), dict):
        raise CheckpointError(f"the recipe in {path} has no model, so its net cannot be built; it is damaged")
    try:
        model: Any = OmegaConf.to_container(OmegaConf.create(config)["model"], resolve=True)
    except OmegaConfBaseException as error:
        raise CheckpointError(f"the recipe in {path} cannot be resolved: {one_line(error)}") from error
    return {str(key): value for key, value in model.items()}


def build_net(model: Any, weights: dict[str, Tensor], trusted: Sequence[str] = ()) -> nn.Module:
    """Build a stored net, after checking that it names robustlit's nets and defenses, or classes of trusted packages.

    Args:
        model: Plain containers, all references replaced.
        weights: Those of the net; one that has many more parameters is not built.
        trusted: Packages of the user's own.

    Raises:
        CheckpointError: It names anything else, or cannot be built.
    """
    checked = plain_values(model)
    if isinstance(checked, dict) and checked.get("weights", "") is None:  # of a recipe: training started from no file
        del checked["weights"]
    check_names(checked, NETS, trusted)
    checked = _offline(checked, weights, "")
    try:
        with _room_for(weights):
            net = instantiate(checked, _convert_="all")
    except (HydraException, OmegaConfBaseException, MemoryError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if isinstance(cause, CheckpointError):
            raise cause from None
        raise CheckpointError(f"the checkpoint's net cannot be built: {one_line(cause)}") from error
    if not isinstance(net, nn.Module):
        raise CheckpointError(f"the checkpoint's model builds a {type(net).__name__}, which is no net")
    return net


def _load(net: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    for name, own in net.state_dict().items():
        stored = weights.get(name)
        kinds = (torch.Tensor.is_floating_point, torch.Tensor.is_complex)
        if isinstance(own, Tensor) and stored is not None and any(kind(own) != kind(stored) for kind in kinds):
            what = f"{shown(name)} is {stored.dtype} there and {own.dtype} in the net"
            raise CheckpointError(f"the weights in {path} do not fit {type(net).__name__}: {what}")
    try:
        net.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the weights in {path} do not fit {type(net).__name__}: {one_line(error)}") from error


@contextmanager
def _room_for(weights: dict[str, Tensor]) -> Iterator[None]:
    """Stop the building of a net whose parameters outgrow the weights, before memory for them is written to."""
    stored = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights.values()}
    left = _FREE + 4 * sum(stored.values())  # in another precision, or registered twice

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel() * parameter.element_size()
        if left < 0:
            raise CheckpointError(f"the checkpoint's recipe builds a {type(module).__name__} far beyond its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _offline(model: Any, weights: dict[str, Tensor], prefix: str) -> Any:
    """Return the recipe of a net that reads no file and fetches nothing; `prefix` leads to the net within a defense."""
    if isinstance(model, list):
        return [_offline(value, weights, prefix) for value in model]
    if not isinstance(model, dict):
        return model
    model = {key: _offline(value, weights, f"{prefix}{key}.") for key, value in model.items()}
    classes = model.get("num_classes")
    if isinstance(classes, int) and classes > _MOST_CLASSES:
        raise CheckpointError(f"the checkpoint's net has {classes} classes, more than {_MOST_CLASSES}")
    if model.get("_target_") == _TIMM:
        _check_timm(model)
    if model.get("pretrained"):
        model["pretrained"] = False
        for name in ("mean", "std"):  # of the normalisation that came with them
            if (value := weights.get(f"{prefix}normalize.{name}")) is not None:
                model[name] = value.flatten().tolist()
    return model


def _check_timm(model: dict[str, Any]) -> None:
    """Raise a CheckpointError for a network of timm that would be read from a file or from the network."""
    name, options = model.get("name"), model.get("model_kwargs") or {}
    if not isinstance(name, str) or not all(c.isalnum() or c in "_.-" for c in name):
        raise CheckpointError(f"the checkpoint's net must be named as in timm.list_models(), got {shown(name)}")
    for option in options if isinstance(options, dict) else ():
        if option.startswith("pretrained") or any(word in option for word in ("path", "dir", "file", "url")):
            raise CheckpointError(f"the checkpoint's net has model_kwargs.{shown(option)}, by which timm reads a file")
