"""Checkpoints: what they hold besides the weights, and how a classifier comes back from one without running code.

A checkpoint may come from a stranger, so it is read with `weights_only=True`, and the classes that its recipe names
are only looked up in packages that are trusted.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, foreign, or that names classes outside the trusted packages."""


def pack(config: dict[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint holds of ours: the format and the composed recipe."""
    return {"format": FORMAT, "config": config}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of ours without running code from it.

    Args:
        path: the file, or a run folder (then its best checkpoint).

    Raises:
        CheckpointError: missing, unreadable, or not written by robustlit.
    """
    path = Path(path)
    if path.is_dir():
        path = best_of(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}; give a .ckpt file or a run folder (runs/NAME) that holds one"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely ({type(error).__name__}); it is damaged, or holds "
            "pickled objects that could run code. Checkpoints written by robustlit hold tensors and plain values only"
        ) from error
    ours = checkpoint.get("robustlit") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path} was not written by robustlit: it holds no recipe to rebuild the net from; load its weights into "
            "your own nn.Module and call robustlit.evaluate(model, data, attacks)"
        )
    if ours.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {ours.get('format')}, this version reads {FORMAT}")
    return checkpoint


def best_of(run: Path) -> Path:
    """The checkpoint that a run folder offers: the best by validation robust accuracy, else the last."""
    for name in ("best.ckpt", "last.ckpt"):
        if (run / "checkpoints" / name).is_file():
            return run / "checkpoints" / name
    raise CheckpointError(f"{run} is a folder without checkpoints/best.ckpt or last.ckpt; it is not a finished run")


def load_classifier(
    path: str | Path, *, net: nn.Module | None = None, trusted: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any] | None]:
    """The net of a checkpoint, with its weights, in eval mode, on the CPU.

    Args:
        path: the file, or a run folder (then its best checkpoint).
        net: the net to fill; None builds it from the stored recipe.
        trusted: packages of your own that the recipe may name classes from.

    Returns:
        The net and the stored recipe (None where there is none).

    Raises:
        CheckpointError: as `read_checkpoint`, and for a net that cannot be rebuilt or does not fit the weights.
    """
    return classifier_of(read_checkpoint(path), str(path), net=net, trusted=trusted)


def classifier_of(
    checkpoint: dict[str, Any], path: str, *, net: nn.Module | None = None, trusted: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any] | None]:
    """As `load_classifier`, from what `read_checkpoint` returned; `path` is for messages."""
    config = checkpoint["robustlit"]["config"]
    prefix = "net."
    weights = {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    if net is None:
        if config is None:
            raise CheckpointError(
                f"{path} holds weights but no recipe (it was trained from Python); pass the net: "
                "load_classifier(path, net=MyNet())"
            )
        net = build_net(config["model"], weights, trusted)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit {type(net).__name__}: {error}") from error
    return net.eval(), config


def build_net(model: dict[str, Any], weights: dict[str, Tensor], trusted: Sequence[str] = ()) -> nn.Module:
    """Builds a stored net, after checking that every class that it names lies in a trusted package."""
    from hydra.utils import instantiate

    check_trusted(model, ("robustlit.models", "robustlit.defenses", *trusted))
    return instantiate(_offline(model, weights, ""), _convert_="all")


def _offline(model: dict[str, Any], weights: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """The net, or a net within a defense, without fetching pretrained weights: they are in the checkpoint.

    Only the normalisation that came with them has to be asked for.
    """
    model = {k: _offline(v, weights, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in model.items()}
    if model.get("pretrained"):
        model["pretrained"] = False
        if f"{prefix}normalize.mean" in weights:
            model["mean"] = weights[f"{prefix}normalize.mean"].flatten().tolist()
            model["std"] = weights[f"{prefix}normalize.std"].flatten().tolist()
    return model


def check_trusted(config: Any, packages: Sequence[str], also: Sequence[str] = ()) -> None:
    """Raises a CheckpointError unless everything that `config` would build is a class of `packages` or one of `also`.

    Args:
        config: plain containers; every `_target_` in them is looked at.
        packages: names of packages whose classes may be built.
        also: single import paths that may be built or called besides.
    """
    from hydra.utils import get_object

    for target in _targets(config):
        if target in also:
            continue
        # The prefix alone is not enough: robustlit.models.cnn.nn.Linear is a path too. What it leads to must be a
        # class, and one that was defined there: some functions would build whatever they are handed.
        try:
            found = get_object(target) if _lies_in(target, packages) else None
        except ImportError:
            found = None
        if not (isinstance(found, type) and _lies_in(found.__module__, packages)):
            raise CheckpointError(
                f"the checkpoint's recipe names {target}, which is no class of {', '.join(packages)}; using it would "
                "run that code. If it is yours, name its package: trust=[PACKAGE] (from Python: trusted=[PACKAGE])"
            )


def _lies_in(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "_target_":
                if value is not None:
                    yield str(value)
            else:
                yield from _targets(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _targets(value)
