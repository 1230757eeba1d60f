"""Read weights that others trained: state dicts, plain or in a training script's checkpoint, without running code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustlit.classifier import check_finite
from robustlit.experiment.matching import matched
from robustlit.experiment.recipes import ConfigError
from robustlit.training.foreign import is_torchscript, python_object
from robustlit.training.stored import one_line, shown

State = dict[str, Any]
# Under which keys training scripts keep a net's weights; where a file has several, the first of these is taken.
PLACES = (
    "state_dict", "model_state_dict", "model", "net", "network", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip
_WRITES = "torch.save(net.state_dict(), FILE) writes one"
_OF_TRAINING = re.compile("optim|sched|scaler|loops|callbacks|hyper")
_SHOWN = 3  # names of each kind in a message
_DEEPEST = 3  # containers in one another: {"model": {"state_dict": [...]}}


def fill(net: nn.Module, file: str, asked: str) -> list[str]:
    """Fill a net with all of its weights from a file.

    Args:
        net: The net; what a normalisation layer of its own holds may be missing in the file.
        file: A state dict (`torch.save`, or .safetensors), or a checkpoint that holds one, see `PLACES`. Its names may
            have what `DataParallel`, `torch.compile`, Lightning or a wrapper around the net put in front of them.
        asked: What named the file, for messages: "--weights".

    Returns:
        Lines on what was taken where the file leaves a choice.

    Raises:
        ConfigError: There is no such file, it holds no state dict or cannot be read without running code, its weights
            do not fit the net one by one, or are not finite.
    """
    name = f"{asked} {file}"
    place, state, notes = _chosen(_read(file, name), name)
    own = net.state_dict()
    found = matched(own, state, {key for key, _ in net.named_buffers()})
    if found.problem or found.missing or found.unexpected:
        why = found.problem or _names(found.missing, found.unexpected)
        raise ConfigError(f"{name} do not fit {type(net).__name__}: {why}")
    weights = {key: state[theirs] for key, theirs in found.pairs.items()}
    if wrong := [text for key, value in weights.items() if (text := _unlike(key, own[key], value))]:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ConfigError(f"{name} do not fit {type(net).__name__}: {'; '.join(wrong[:_SHOWN])}{more}")
    try:
        net.load_state_dict({**own, **weights})
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} do not fit {type(net).__name__}: {one_line(error)}") from error
    check_finite(net, f"{name} holds", ConfigError)
    return [f"{name}{place}: {note}" for note in (*notes, *found.notes)]


def _read(file: str, name: str) -> Any:
    """Return what a file holds; raise a ConfigError where it cannot be read without running code."""
    if not Path(file).is_file():
        what = f"{file} is a folder" if Path(file).is_dir() else f"there is no file {file}"
        raise ConfigError(f"{name.partition(' ')[0]}: {what}; give one with the net's state dict: {_WRITES}")
    try:
        if Path(file).suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about programs, which are refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConfigError(f"{name} cannot be read: {one_line(error)}; it is damaged, or no safetensors file") from error
    except Exception as error:  # torch, pickle and zipfile raise many kinds
        raise ConfigError(f"{name} {_why_not(file, error)}") from error


def _why_not(file: str, error: Exception) -> str:
    """Return why torch does not read a file without running code, and the way out."""
    if is_torchscript(file):
        way = f"torch.save(torch.jit.load({file!r}).state_dict(), FILE) writes its state dict"
        return f"is a TorchScript program, not a state dict; {way}"
    if (found := python_object(error)) is not None:
        way = "torch.save(torch.load(OLD, 'cpu', weights_only=False).state_dict(), FILE)"
        inside = f"for a net inside a checkpoint torch.load(OLD, 'cpu', weights_only=False)[{PLACES[0]!r}]"
        return (
            f"cannot be read safely: it holds whole Python objects ({found}), such as a pickled net, "
            f"and reading those runs code. If you trust it, write its state dict where its code is: {way}; {inside}"
        )
    return f"cannot be read safely ({type(error).__name__}): it must be a state dict, as {_WRITES}, or .safetensors"


def _chosen(content: Any, name: str) -> tuple[str, State, list[str]]:
    """Return where in a file the state dict lies (" [state_dict]"), the state dict, and a note where it has several."""
    found = dict(_states(content, ""))
    if not found:
        there = f"holds {_listed(map(str, content))}" if isinstance(content, Mapping) else f"is {_kind(content)}"
        raise ConfigError(
            f"{name} {there}, and none of it is a state dict (names and tensors), as {_WRITES}; known places are "
            f"{', '.join(PLACES)}"
        )
    first, *others = sorted(found, key=_rank)
    if "[" in first and any(place.startswith(first.partition("[")[0]) for place in others):
        raise ConfigError(
            f"{name} holds a list of {len(found)} state dicts, of several nets; save the one that is meant: "
            f"torch.save(torch.load(FILE, 'cpu', weights_only=True){_index(first)}, NEW)"
        )
    notes = []
    if others:
        wanted = (
            f"torch.save(torch.load(FILE, 'cpu', weights_only=True){_index(others[0])}, NEW) makes a file of the other"
        )
        notes = [f"it holds {', '.join([first, *others])}: {first} is taken ({wanted})"]
    return f" [{first}]" if first and others else "", found[first], notes


def _states(content: Any, place: str, depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield the state dicts of a file by their place; what an optimizer keeps is none."""
    if isinstance(content, Mapping):
        named = {key: value for key, value in content.items() if isinstance(key, str)}
        tensors = sum(isinstance(value, Tensor) for value in named.values())
        inner = {key: value for key, value in named.items() if isinstance(value, (Mapping, list))}
        if tensors and len(named) == len(content) and not any(dict(_states(v, "", 1)) for v in inner.values()):
            yield place, {key: value for key, value in named.items() if isinstance(value, Tensor)}
        elif depth < _DEEPEST:
            for key, value in inner.items():
                if not _OF_TRAINING.search(key):
                    yield from _states(value, f"{place}.{key}".lstrip("."), depth + 1)
    elif isinstance(content, list) and depth < _DEEPEST:
        inner = {f"[{number}]" if len(content) > 1 else "": value for number, value in enumerate(content)}
        for key, value in inner.items():
            if isinstance(value, Mapping):
                yield from _states(value, place + key, depth + 1)


def _rank(place: str) -> tuple[int, int, str]:
    parts = re.sub(r"\[\d+\]", "", place).split(".")
    known = [PLACES.index(part) if part in PLACES else len(PLACES) for part in parts]
    return max(known), len(parts), place


def _index(place: str) -> str:
    return "".join(part if part.startswith("[") else f"[{part!r}]" for part in re.findall(r"\[\d+\]|[^.\[\]]+", place))


def _unlike(key: str, own: Tensor, value: Tensor) -> str:
    """Return in what a tensor of the file differs from the net's so that it cannot be copied, "" if in nothing."""
    if not is_lazy(own) and own.shape != value.shape:
        return f"{shown(key)[1:-1]} is {tuple(value.shape)} in the file and {tuple(own.shape)} in the net"
    kinds = (Tensor.is_floating_point, Tensor.is_complex)
    if value.is_quantized or any(kind(own) != kind(value) for kind in kinds):
        return f"{shown(key)[1:-1]} is {value.dtype} in the file and {own.dtype} in the net"
    return ""


def _names(missing: list[str], unexpected: list[str]) -> str:
    sides = (("it lacks", missing), ("it has, and the net has not,", unexpected))
    return "; ".join(f"{what} {_listed(names)}" for what, names in sides if names)


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown(name)[1:-1] for name in names[:_SHOWN]) + more if names else "nothing"


def _kind(content: Any) -> str:
    return f"a {type(content).__name__}"
