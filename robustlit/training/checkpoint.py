"""Write and read checkpoints without running code from them.

A checkpoint may come from an untrusted source, so it is read with `weights_only=True`, and the classes that its recipe
names are only looked up in trusted packages.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch import Tensor, nn

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, not of robustlit, or names classes outside the trusted packages."""


def pack(config: dict[str, Any] | None) -> dict[str, Any]:
    """Return what robustlit adds to a checkpoint: the format and the composed recipe."""
    return {"format": FORMAT, "config": config}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of robustlit without running code from it.

    Args:
        path: The file, or a run folder (then its best checkpoint).

    Raises:
        CheckpointError: Missing, unreadable, or not written by robustlit.
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
        CheckpointError: See `read_checkpoint`; also a net that cannot be rebuilt or does not fit the weights.
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
        net = build_net(model or config["model"], weights, trusted)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit {type(net).__name__}: {error}") from error
    return net.eval(), config


def build_net(model: dict[str, Any], weights: dict[str, Tensor], trusted: Sequence[str] = ()) -> nn.Module:
    """Build a stored net, after checking that every class that it names lies in a trusted package."""
    check_trusted(model, ("robustlit.models", "robustlit.defenses", *trusted))
    return instantiate(_offline(model, weights, ""), _convert_="all")


def _offline(model: dict[str, Any], weights: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """Return the recipe of a net that fetches no pretrained weights; `prefix` leads to the net within a defense."""
    model = {k: _offline(v, weights, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in model.items()}
    if model.get("pretrained"):
        model["pretrained"] = False
        for name in ("mean", "std"):  # of the normalisation that came with them
            if (value := weights.get(f"{prefix}normalize.{name}")) is not None:
                model[name] = value.flatten().tolist()
    return model


def check_trusted(config: Any, packages: Sequence[str], also: Sequence[str] = ()) -> None:
    """Raise a CheckpointError unless everything that `config` builds is a class of `packages` or listed in `also`.

    Args:
        config: Plain containers; every `_target_` in them is checked.
        packages: Packages whose classes may be built.
        also: Further import paths that may be built or called.
    """
    for target in _targets(config):
        if target in also:
            continue
        # The prefix alone is not enough: robustlit.models.cnn.nn.Linear is a path too. The object must be a class,
        # and defined there: some functions would build whatever they are given.
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
        if config.get("_target_") is not None:
            yield str(config["_target_"])
        config = list(config.values())
    for value in config if isinstance(config, (list, tuple)) else ():
        yield from _targets(value)
