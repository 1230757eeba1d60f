"""A digest of everything that decides a result: nets with their weights and settings, attacks, images, plain values."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from types import CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_OF_TORCH = {*vars(nn.Module())}  # what PyTorch itself keeps in every module
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def fingerprint(*values: Any) -> str:
    """Return 32 hexadecimal digits that depend on the values alone, in this process and in any other.

    Of a net and of an attack they depend on the code of its classes, its weights and its settings (attributes); of a
    function on its code; of an object of an unknown kind on the name of its class only.
    """
    found = hashlib.sha256()
    for piece in _pieces(values, set()):
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()[:32]


def _pieces(value: Any, above: set[int]) -> Iterator[bytes | memoryview]:
    """Yield what is digested of a value; `above` holds the ids of the objects that it lies in."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
        return
    yield _path(value if isinstance(value, type) else type(value))
    if id(value) in above:  # an object that holds itself
        return
    inside = {*above, id(value)}
    if isinstance(value, Tensor):
        yield from _numbers(value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    else:
        for part in _parts(value):
            yield from _pieces(part, inside)
    yield b"end"


def _parts(value: Any) -> Iterator[Any]:
    """Yield what a container, net, function or dataclass consists of."""
    kind: Any = type(value)
    if isinstance(value, nn.Module):
        yield _code(kind)
        own = {k: v for k, v in vars(value).items() if k == "forward" or not (k in _OF_TORCH or hasattr(nn.Module, k))}
        if isinstance(value, torch.jit.ScriptModule):
            yield getattr(value, "code", None)
        yield from (hook for name in _HOOKS for hook in getattr(value, name).values())
        held = ((k, v) for kind in ("_parameters", "_buffers", "_modules") for k, v in getattr(value, kind).items())
        yield from (part for pair in (*sorted(own.items()), *held) for part in pair)
    elif isinstance(value, Mapping):
        yield from (part for pair in value.items() for part in pair)
    elif isinstance(value, Set):
        yield from sorted(fingerprint(part) for part in value)
    elif isinstance(value, (list, tuple, np.ndarray)):
        yield from list(value)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType):
        yield from (value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
        yield from (cell.cell_contents for cell in value.__closure__ or () if cell != type(cell)())
    elif isinstance(value, Enum):
        yield value.name
    elif isinstance(value, SimpleNamespace):
        yield vars(value)
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif is_dataclass(value) and not isinstance(value, type):
        yield _code(kind)
        yield from (part for field in fields(value) for part in (field.name, getattr(value, field.name, None)))


@functools.cache
def _code(kind: type) -> str:
    """Return a digest of the methods that a class has from anywhere but PyTorch."""
    above = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in ("builtins", "torch")]
    written = [
        (name, part.__code__) for base in above for name, part in vars(base).items() if isinstance(part, FunctionType)
    ]
    return fingerprint(written)


def _path(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _numbers(tensor: Tensor) -> Iterator[bytes | memoryview]:
    if is_lazy(tensor) or tensor.is_meta:
        return
    yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    plain = tensor.detach().cpu()
    plain = (plain.to_dense() if plain.layout != torch.strided else plain).resolve_conj().resolve_neg()
    yield plain.contiguous().reshape(-1).view(torch.uint8).numpy().data
