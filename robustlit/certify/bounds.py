"""`Bounds` stand in for the images in a net's own forward, and find bounds of every layer on the way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from robustlit.attacks.surroundings import held_in_eval
from robustlit.certify.ops import Affine, Op
from robustlit.certify.region import Region
from robustlit.certify.tape import Node, Tape
from robustlit.classifier import as_weights, check_labels, check_logits, is_stochastic, unwrapped

Refine = Callable[[Tape, Op, Node], None]
NUMBERS = 2**24  # of slopes at once, 128 MiB in float64
_COMPARED = 8  # images of which the net's logits are compared with their bounds
_SLACK = 0.01  # of the largest logit, for arithmetic that the proof does not cover, such as TF32
Views = WeakValueDictionary[int, "Bounds"]  # by id(): the views of one tensor
_KNOWN = (
    "linear, convolution, BatchNorm, ReLU, LeakyReLU, JumpReLU, sigmoid, tanh, average and max pooling, flatten, sums, "
    "concatenation, normalisation, bilinear and nearest resize, padding, slices"
)
_AUTOCAST = (
    "the net turns autocast on in its own forward and so rounds to half precision, and the proof covers the rounding "
    "of float32: take torch.autocast out of the forward"
)


class UnknownLayerError(ValueError):
    """A net has a layer that no bounds are known of."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no bounds are known of {name}, which {_caller()} calls; certificates know {_KNOWN}")


class Proxy:
    """Stand in for a tensor in a net's forward. Every operator is an UnknownLayerError unless a subclass defines it."""

    __hash__ = object.__hash__
    __array_ufunc__ = None  # NumPy's numbers leave arithmetic to this class

    def __bool__(self) -> bool:
        raise UnknownLayerError("a decision that depends on the image")

    def __getattr__(self, name: str) -> Any:
        raise UnknownLayerError(name)


def _unknown(name: str) -> Callable[..., Any]:
    def refuse(self: Proxy, *args: Any) -> Any:
        raise UnknownLayerError(name)

    return refuse


for _name in (
    "setitem", "getitem", "len", "iter", "contains", "abs", "neg", "pow", "rpow", "ipow", "matmul", "rmatmul", "mod",
    "rmod", "floordiv", "rfloordiv", "and", "rand", "or", "ror", "xor", "rxor", "invert", "float", "int", "index",
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv",
):  # fmt: skip
    setattr(Proxy, f"__{_name}__", _unknown(f"__{_name}__"))  # Python looks these up on the class alone
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Proxy, f"__{_name}__", _unknown("a comparison"))


class Bounds(Proxy):
    """Bounds in the place of an activation; PyTorch's functions of it are looked up in `layers.LAYERS`."""

    def __init__(self, tape: Tape, node: Node, views: Views | None = None) -> None:
        self.tape, self.node = tape, node
        self.views = Views() if views is None else views  # share storage: an in-place change of one changes all
        self.views[id(self)] = self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):  # `logits_of` turned the caller's off
            raise ValueError(_AUTOCAST)
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        in_place = bool(kwargs.pop("inplace", False)) or (name[-1:] == "_" and name[:2] != "__") or name[:3] == "__i"
        name = name.strip("_")
        name = name[1:] if name in ("iadd", "isub", "imul", "itruediv") else name
        if "input" in kwargs:
            args = (kwargs.pop("input"), *args)
        if "other" in kwargs:
            args = (*args, kwargs.pop("other"))
        if "axis" in kwargs:
            kwargs["dim"] = kwargs.pop("axis")
        found = _called(name, args, kwargs)
        if not in_place:
            return found
        changed, others = args[0], len(args[0].views) > 1
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


def applied(op: Op, *inputs: Bounds) -> Bounds:
    """Return bounds on an operation's result."""
    return Bounds(inputs[0].tape, inputs[0].tape.add(op, *(each.node for each in inputs)))


def check_batched(x: Bounds, layer: str, least: int, most: int | None = None) -> None:
    """Raise an UnknownLayerError unless x has `least` to `most` dimensions: else PyTorch mixes the examples."""
    if x.dim() < least or (most is not None and x.dim() > most):
        raise UnknownLayerError(f"{layer} of values of shape {tuple(x.shape)} (it mixes examples of the batch)")


def _called(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply the layer `name` to the arguments of PyTorch's function."""
    from robustlit.certify.layers import LAYERS  # which makes Bounds

    if name not in LAYERS:
        raise UnknownLayerError(name)
    if name != "masked_fill" and any(isinstance(each, Proxy) and type(each) is not Bounds for each in args):
        raise UnknownLayerError(f"{name} of a comparison")
    try:
        return LAYERS[name](*args, **kwargs)
    except TypeError:
        try:
            inspect.signature(LAYERS[name]).bind(*args, **kwargs)
        except TypeError:
            raise UnknownLayerError(f"{name} with {', '.join(kwargs) or 'such arguments'}") from None
        raise


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


def margins_of(tape: Tape, logits: Node, y: Tensor, *, through_activations: bool, same_slopes: bool = False) -> Tensor:
    """Return lower bounds (B, K) of the true class's logit minus each other; 0 at the true class.

    The difference is bounded, not each logit: it goes back through the last layers as one linear function.

    Raises:
        ValueError: A label is not in [0, K - 1]. Checked only in float64, where the bounds are proofs.
    """
    count = logits.low.shape[1]
    if tape.proves:
        check_labels(y, len(y), count)
    every = torch.eye(count, dtype=logits.low.dtype, device=logits.low.device).unsqueeze(1)  # (K, 1, K)
    how: Any = {"through_activations": through_activations, "same_slopes": same_slopes}
    if count * count * len(y) <= NUMBERS // 8:
        return tape.lower_bounds(logits, every[y].transpose(0, 1) - every, **how).T
    # With many classes: propagate each logit back through the last layer once, and bound a few margins at a time.
    node, constant, first = logits, every.new_zeros(count, 1), 0
    if isinstance(logits.op, Affine):
        (node,), ((every,), shift) = logits.inputs, logits.op.backward_bounds(every, logits.inputs, same_slopes)
        constant = constant + shift
    if not through_activations:
        first = max((each.number for each in tape.nodes if each.op is not None and each.op.is_nonlinear), default=0)
    largest = max(each.low[0].numel() for each in tape.nodes[first:])
    own = every[y].transpose(0, 1)  # (1, B, ...)
    pieces = every.split(max(1, NUMBERS // (len(y) * largest)))
    found = torch.cat([tape.lower_bounds(node, own - piece, **how) for piece in pieces]).T + constant[y] - constant.T
    if tape.proves and node is not logits and logits.noise is not None:
        found = found - logits.noise.gather(1, y.unsqueeze(1)) - logits.noise
    return found.scatter(1, y.unsqueeze(1), 0.0)


def check_logits_in_bounds(model: nn.Module, x: Tensor, norm: str) -> None:
    """Raise a ValueError if the logits of some of the images x (B, C, H, W) lie outside their bounds at radius 0.

    The forward may tell `Bounds` from a tensor, and the hooks of a wrapper run for tensors only.
    """
    x = x[:_COMPARED]
    with torch.no_grad(), held_in_eval(model), torch.autocast(x.device.type, enabled=False):
        logits = logits_of(model, Region(x.double(), x.new_zeros(len(x)), norm))[1]
        answers = check_logits(model(as_weights(model, x.clone())), len(x)).double()
    slack = _SLACK * answers.abs().amax(1, keepdim=True) + 1e-6
    outside = (answers < logits.low - slack) | (answers > logits.high + slack)
    if bool(outside.any()):
        image, k = torch.nonzero(outside)[0].tolist()
        low, high = float(logits.low[image, k]), float(logits.high[image, k])
        raise ValueError(
            f"the net's logit of class {k} is {float(answers[image, k]):.4g} for an image, and its bounds there are "
            f"{low:.4g} to {high:.4g}: its forward treats a tensor otherwise than the proxy of the bounds, for "
            "example by isinstance(x, torch.Tensor) or a forward hook of its wrapper; remove that"
        )


def _caller() -> str:
    """Return the class of the innermost module whose forward is running, and where in it."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return f"{type(owner).__name__} ({' '.join(str(owner).split())[:80]})"
        frame = frame.f_back
    return "the model"
