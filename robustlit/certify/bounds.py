"""`Bounds` stand in for the images in a net's own forward, and find bounds of every layer on the way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from robustlit.attacks.surroundings import held_in_eval
from robustlit.certify.ops import Op
from robustlit.certify.region import Region
from robustlit.certify.tape import Node, Tape
from robustlit.classifier import is_stochastic, unwrapped

Refine = Callable[[Tape, Op, Node], None]
_KNOWN = (
    "linear, convolution, BatchNorm, ReLU, LeakyReLU, JumpReLU, sigmoid, tanh, average and max pooling, flatten, sums, "
    "normalisation, bilinear resize"
)
_AUTOCAST = (
    "the net turns autocast on in its own forward and so rounds to half precision, and the proof covers the rounding "
    "of float32: take torch.autocast out of the forward"
)


class UnknownLayerError(ValueError):
    """A net has a layer that no bounds are known of."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no bounds are known of {name}, which {_caller()} calls; certificates know {_KNOWN}")


class Bounds:
    """Bounds in the place of an activation; PyTorch's functions of it are looked up in `layers.LAYERS`."""

    def __init__(self, tape: Tape, node: Node, memory: WeakSet[Bounds] | None = None) -> None:
        self.tape, self.node = tape, node
        self.memory = WeakSet[Bounds]() if memory is None else memory  # all that share a tensor's memory
        self.memory.add(self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from robustlit.certify.layers import LAYERS  # which makes Bounds

        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):  # `logits_of` turned the caller's off
            raise ValueError(_AUTOCAST)
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        in_place = bool(kwargs.pop("inplace", False)) or (name[-1:] == "_" and name[:2] != "__") or name[:3] == "__i"
        name = name.strip("_")
        name = name[1:] if name in ("iadd", "isub", "imul", "itruediv") else name
        if name not in LAYERS:
            raise UnknownLayerError(name)
        found = LAYERS[name](*args, **kwargs)
        if not in_place:
            return found
        changed, others = args[0], len(args[0].memory) > 1
        if others or not isinstance(found, Bounds):
            raise UnknownLayerError(f"{name} in place on a part of another tensor")
        changed.node = found.node
        return changed

    def __getattr__(self, name: str) -> Any:
        method = getattr(Tensor, name, None)
        if name.startswith("__") or not callable(method):
            raise UnknownLayerError(name)
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    def __neg__(self) -> Any:
        return self.__torch_function__(Tensor.mul, (), (self, -1.0))

    def __bool__(self) -> bool:
        raise UnknownLayerError("a decision that depends on the image")

    def _compared(self, other: object) -> bool:
        if other is self:
            return True
        raise UnknownLayerError("a comparison")

    __eq__ = __ne__ = __lt__ = __gt__ = __ge__ = _compared
    __hash__ = object.__hash__

    def is_floating_point(self) -> bool:
        """As of a tensor."""
        return True

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As of a tensor."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    shape = property(lambda self: self.node.low.shape)
    ndim = property(dim)
    dtype = property(lambda self: self.node.low.dtype)
    device = property(lambda self: self.node.low.device)
    is_cuda = property(lambda self: self.node.low.is_cuda)
    requires_grad = property(lambda self: self.node.low.requires_grad)


def _operator(name: str, swapped: bool = False) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    def apply(self: Bounds, other: Any) -> Any:
        return Bounds.__torch_function__(method, (), (other, self) if swapped else (self, other))

    return apply


for _name in ("add", "sub", "mul", "truediv", "le"):
    setattr(Bounds, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("add", "sub", "mul"):
    setattr(Bounds, f"__r{_name}__", _operator(f"__{_name}__", swapped=True))
for _name in ("iadd", "isub", "imul", "itruediv", "getitem"):
    setattr(Bounds, f"__{_name}__", _operator(f"__{_name}__"))


def _unknown(name: str) -> Callable[..., Any]:
    def refuse(self: Bounds, *args: Any) -> Any:
        raise UnknownLayerError(name)

    return refuse


for _name in (
    "setitem", "iter", "contains", "abs", "pow", "rpow", "ipow", "rtruediv", "matmul", "rmatmul", "mod", "rmod",
    "floordiv", "rfloordiv", "and", "or", "xor", "invert", "float", "int", "index",
):  # fmt: skip
    setattr(Bounds, f"__{_name}__", _unknown(f"__{_name}__"))  # Python looks these up on the class alone


def logits_of(model: nn.Module, region: Region, refine: Refine | None = None) -> tuple[Tape, Node]:
    """Run a net in eval mode on a region; return the tape and the node of its logits (B, K).

    Raises:
        ValueError: The net is stochastic, or does not return logits.
        UnknownLayerError: No bounds are known of a layer.
    """
    if is_stochastic(model):
        name = type(unwrapped(model)).__name__
        raise ValueError(f"{name} answers at random, so that no bounds hold; certify it with RandomizedSmoothing")
    tape = Tape(region, refine)
    with held_in_eval(model), torch.autocast(region.x.device.type, enabled=False):
        logits = unwrapped(model)(Bounds(tape, tape.nodes[0]))
    if not isinstance(logits, Bounds) or logits.dim() != 2:
        what = f"{tuple(logits.shape)}" if isinstance(logits, (Bounds, Tensor)) else type(logits).__name__
        raise ValueError(f"the model must return logits (B, K) that depend on the images, got {what}")
    return tape, logits.node


def margins_of(tape: Tape, logits: Node, y: Tensor, *, through_bends: bool, parallel: bool = False) -> Tensor:
    """Return lower bounds (B, K) of the true class's logit minus each other; 0 at the true class.

    The difference is bounded, not each logit: it goes back through the last layers as one linear function.
    """
    count = logits.low.shape[1]
    every = torch.eye(count, dtype=logits.low.dtype, device=logits.low.device)
    slopes = every[y].unsqueeze(0) - every.unsqueeze(1)  # (K, B, K)
    return tape.least(logits, slopes, through_bends=through_bends, parallel=parallel).T


def _caller() -> str:
    """Return the class of the innermost module whose forward is running, and where in it."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return f"{type(owner).__name__} ({' '.join(str(owner).split())[:80]})"
        frame = frame.f_back
    return "the model"
