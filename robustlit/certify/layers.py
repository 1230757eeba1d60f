"""The layers that bounds are known of, by the name of PyTorch's function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from robustlit.certify import activations
from robustlit.certify.bounds import Bounds, Proxy, UnknownLayerError, applied, check_batched
from robustlit.certify.ops import Affine, MaxPool, Sum
from robustlit.certify.shapes import flattened, indexed, joined, most_copies, moved, padded, permuted, reshaped

_WITH_CONSTANT = 2  # roundings: of the result, and of a Python number to float32


class JumpMask(Proxy):
    """The mask of a JumpReLU: where a value is at most `threshold`. Only `masked_fill` takes it."""

    def __init__(self, value: Bounds, threshold: float) -> None:
        self.value, self.threshold = value, threshold

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Bounds.__torch_function__(func, types, args, kwargs)


def _linear(x: Bounds, weight: Tensor, bias: Tensor | None = None) -> Bounds:
    def call(v: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        assert w is not None
        return F.linear(v, w, None if b is None else b.flatten())

    check_batched(x, "a linear layer", 2)
    weight = weight.to(x.node.low.dtype)
    shift = None if bias is None else bias.to(weight).view(1, -1)
    count = max(weight.shape) + 1  # the way back sums over the rows
    return applied(Affine(call, weight, shift, count, transposed=lambda slopes, shape: slopes @ weight), x)


def _conv2d(
    x: Bounds, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Bounds:  # fmt: skip
    def call(v: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        assert w is not None
        return F.conv2d(v, w, None if b is None else b.flatten(), stride, padding, dilation, groups)

    def transposed(slopes: Tensor, shape: Sequence[int]) -> Tensor:
        return conv2d_input(shape, weight, slopes, stride, padding, dilation, groups)

    check_batched(x, "a convolution", 4, 4)
    weight = weight.to(x.node.low.dtype)
    shift = None if bias is None else bias.to(weight).view(1, -1, 1, 1)
    count = max(weight[0].numel(), prod(weight.shape[2:]) * weight.shape[0]) + 1
    if isinstance(padding, str):
        return applied(Affine(call, weight, shift, count), x)
    kernel = (weight.shape[2], weight.shape[3])
    geometry = (kernel, _pair(stride), _pair(padding), _pair(dilation), groups)
    return applied(Affine(call, weight, shift, count, geometry=geometry, transposed=transposed), x)


def _scaled(x: Bounds, weight: Tensor | None, bias: Tensor | None, count: int) -> Bounds:
    """Return weight * x + bias, each of a shape that broadcasts against one example."""

    def call(v: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        v = v if w is None else v * w
        return v if b is None else v + b

    def transposed(slopes: Tensor, shape: Sequence[int]) -> Tensor:
        return slopes if weight is None else slopes * weight

    by_channel = x.dim() == 4 and all(v is None or v.shape[2:] in ((), (1, 1)) for v in (weight, bias))
    op = Affine(call, weight, bias, count, copies=1, by_channel=by_channel, transposed=transposed)
    return applied(op, x)


def _batch_norm(
    x: Bounds, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Bounds:  # fmt: skip
    if training:
        raise UnknownLayerError("a BatchNorm that takes the statistics of the batch")
    if running_mean is None or running_var is None:
        raise UnknownLayerError("a BatchNorm without running statistics")
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, factor = running_mean.to(x.node.low), (running_var.to(x.node.low) + eps).rsqrt()
    factor = factor if weight is None else factor * weight.to(factor)
    # As a scale of a difference, so that the rounding of both ways to compute it is covered.
    moved = _scaled(x, None, -mean.view(shape), 4)
    return _scaled(moved, factor.view(shape), None if bias is None else bias.to(factor).view(shape), 6)


def _constant(x: Bounds, value: Any) -> Tensor:
    """Return a constant that broadcasts against an example, as a tensor that is alike for all."""
    if not isinstance(value, (Tensor, Real)):
        raise UnknownLayerError(f"arithmetic with a {type(value).__name__}")
    tensor = torch.as_tensor(value, dtype=x.node.low.dtype, device=x.device)
    shape = torch.broadcast_shapes(tensor.shape, x.shape)
    if shape != x.shape or (tensor.ndim == x.dim() and tensor.shape[0] != 1):
        raise UnknownLayerError(f"arithmetic with a constant of shape {tuple(tensor.shape)}")
    return tensor.view(*[1] * (x.dim() - tensor.ndim), *tensor.shape)


def _add(a: Any, b: Any, *, alpha: float = 1, sign: int = 1) -> Bounds:
    if alpha != 1:
        raise UnknownLayerError("a sum with alpha")
    if isinstance(a, Bounds) and isinstance(b, Bounds):
        if a.shape != b.shape:
            raise UnknownLayerError(f"a sum of shapes {tuple(a.shape)} and {tuple(b.shape)}")
        return applied(Sum(sign), a, b)
    if isinstance(a, Bounds):
        return _scaled(a, None, sign * _constant(a, b), _WITH_CONSTANT)
    if sign < 0:
        b = _mul(b, -1.0)
    return _scaled(b, None, _constant(b, a), _WITH_CONSTANT)


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Bounds:
    return _add(a, b, alpha=alpha, sign=-1)


def _mul(a: Any, b: Any) -> Bounds:
    if isinstance(a, Bounds) and isinstance(b, Bounds):
        raise UnknownLayerError("a product of two activations")
    x, value = (a, b) if isinstance(a, Bounds) else (b, a)
    return _scaled(x, _constant(x, value), None, _WITH_CONSTANT)


def _div(x: Any, value: Any) -> Bounds:
    if not isinstance(x, Bounds) or isinstance(value, Bounds):
        raise UnknownLayerError("a division by an activation")
    return _scaled(x, 1 / _constant(x, value), None, _WITH_CONSTANT + 1)  # some devices multiply by the inverse


def _mean(x: Bounds, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Bounds:
    if dtype not in (None, torch.float32):
        raise UnknownLayerError(f"a mean in {str(dtype).removeprefix('torch.')}")
    dims = [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim or [0])]
    if 0 in dims:
        raise UnknownLayerError("a mean over the batch")
    return moved(x, lambda v: v.mean(dims, keepdim), prod(x.shape[d] for d in dims) + 1)


def _avg_pool2d(
    x: Bounds, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Bounds:  # fmt: skip
    check_batched(x, "an average pooling", 4, 4)
    if divisor_override is not None and divisor_override < 0:
        raise UnknownLayerError(f"an average pooling with the divisor {divisor_override}")
    how = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return moved(x, lambda v: F.avg_pool2d(v, *how), prod(_pair(kernel_size)) + 1)


def _adaptive_avg_pool2d(x: Bounds, output_size: Any) -> Bounds:
    check_batched(x, "an average pooling", 4, 4)
    return moved(x, lambda v: F.adaptive_avg_pool2d(v, output_size), prod(x.shape[2:]) + 1)


def _max_pool2d(
    x: Bounds, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Bounds:  # fmt: skip
    if return_indices:
        raise UnknownLayerError("a max pooling that returns indices")
    check_batched(x, "a max pooling", 4, 4)
    pool: Any = F.max_pool2d

    def call(v: Tensor, indices: bool) -> Any:
        return pool(v, kernel_size, stride, padding, dilation, ceil_mode, indices)

    reach = [(k - 1) * d + 1 for k, d in zip(_pair(kernel_size), _pair(dilation), strict=True)]
    steps = _pair(stride or kernel_size)
    return applied(MaxPool(call, overlaps=any(r > s for r, s in zip(reach, steps, strict=True))), x)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _interpolate(
    x: Bounds, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Bounds:  # fmt: skip
    if mode not in ("nearest", "nearest-exact", "bilinear"):
        raise UnknownLayerError(f"a resize of mode {mode!r}")
    check_batched(x, "a resize", 3)

    def call(v: Tensor) -> Tensor:
        return F.interpolate(v, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)

    if mode != "bilinear":  # float64 would take other pixels than the net's own float32
        places = torch.arange(prod(x.shape[2:]), dtype=torch.float32, device=x.device)
        taken = call(places.view(1, 1, *x.shape[2:])).long()[0, 0]
        return moved(x, lambda v: v.flatten(2)[:, :, taken], copies=most_copies(taken))
    # The positions are computed in float32 too, to within the side's rounding, so that a pixel beside those that
    # float64 takes may have a share.
    count = 16 + 8 * max(max(x.shape[2:]), *_pair(size or 1))
    return moved(x, call, count, reach=lambda v: call(F.max_pool2d(v, 3, 1, 1)))


def _relu(x: Bounds) -> Bounds:
    return applied(activations.LeakyReLU(), x)


def _leaky_relu(x: Bounds, negative_slope: float = 0.01) -> Bounds:
    if not 0 <= negative_slope <= 1:
        raise UnknownLayerError(f"a LeakyReLU of slope {negative_slope}")
    return applied(activations.LeakyReLU(negative_slope), x)


def _le(x: Any, threshold: Any) -> JumpMask:
    if not isinstance(x, Bounds) or not isinstance(threshold, (int, float)) or threshold < 0:
        raise UnknownLayerError("a comparison")
    return JumpMask(Bounds(x.tape, x.node), float(threshold))


def _masked_fill(x: Any, mask: Any, value: Any) -> Bounds:
    """A JumpReLU: the ReLU of a value, and 0 where that is at most a threshold."""
    if isinstance(x, Bounds) and isinstance(mask, JumpMask) and value == 0:
        made = x.node.op
        if made == activations.LeakyReLU() and x.node.inputs == (mask.value.node,):
            return applied(activations.JumpReLU(mask.threshold), mask.value)
    raise UnknownLayerError("a masked fill that is not a JumpReLU")


def _dropout(x: Bounds, p: float = 0.5, training: bool = True) -> Bounds:
    if training:
        raise UnknownLayerError("a dropout that is on in eval mode")
    return x


def _same(x: Bounds, *args: Any, **kwargs: Any) -> Bounds:
    return x


LAYERS: dict[str, Callable[..., Any]] = {
    "linear": _linear, "conv2d": _conv2d, "batch_norm": _batch_norm, "add": _add, "sub": _sub, "mul": _mul,
    "div": _div, "truediv": _div, "view": reshaped, "reshape": reshaped, "flatten": flattened, "mean": _mean,
    "avg_pool2d": _avg_pool2d, "adaptive_avg_pool2d": _adaptive_avg_pool2d, "max_pool2d": _max_pool2d,
    "interpolate": _interpolate, "pad": padded, "permute": permuted, "getitem": indexed, "cat": joined, "relu": _relu,
    "leaky_relu": _leaky_relu, "sigmoid": lambda x: applied(activations.Sigmoid(), x),
    "tanh": lambda x: applied(activations.Tanh(), x), "le": _le, "masked_fill": _masked_fill,
    # In eval mode, and in the one precision of the bounds, these change nothing.
    "dropout": _dropout, "dropout2d": _dropout, "contiguous": _same, "float": _same,
}  # fmt: skip
