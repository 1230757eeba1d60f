"""Activations with a jump, and their insertion into any net."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from robustlit.checks import check_not_negative

# Without gates (sigmoid, softmax), which scale a signal and are not replaced.
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU,
    nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Softplus,
)  # fmt: skip
# By name, because importing timm takes seconds; a net of its classes has imported it already.
_TIMM_FILES = ("timm.layers.activations", "timm.layers.activations_me")
_TIMM_NAMES = (
    "Swish", "SwishMe", "Mish", "MishMe", "HardSwish", "HardSwishMe", "HardMish", "HardMishMe",
    "GELU", "GELUTanh", "QuickGELU",
)  # fmt: skip

# A compromise, measured on BaseCNN: DDN finds nearer adversarial examples at half of it, BIM breaks more at twice.
_WIDTH = 0.1

_NONE = (
    "{net} has no activation module to replace; calls inside a forward (F.relu, torch.relu, x.relu()) cannot be seen: "
    "write them as modules (self.act = nn.ReLU()), or name your own classes: types=(MyActivation,)"
)
_ITSELF = (
    "{net} is itself the activation, and there is no net around it in which to replace it; use JumpReLU(kappa, "
    "activation={net}()) in its place"
)
_TWICE = (
    "{net} has jumps already ({paths}): a jump around a jump is a mistake; give the net without jumps, or train "
    "and judge this one as it is"
)


class Jump(nn.Module):
    """Base of the jumps: an activation (None: ReLU), and the threshold below which it is 0.

    In train mode the gradient is that of the activation alone (straight through): the signals of an untrained net lie
    below the threshold, where the jump's gradient is 0, and training would not begin. In eval mode it is the jump's.
    """

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = nn.ReLU() if activation is None else activation

    def threshold(self, z: Tensor) -> float | Tensor:
        """Return kappa for this forward."""
        raise NotImplementedError

    def chance(self, z: Tensor) -> Tensor:
        """Return how open the smoothed activation is, from 0 to 1, in the shape of `z`."""
        raise NotImplementedError

    def forward(self, z: Tensor) -> Tensor:
        """Return the activation's value where `z` exceeds kappa, else 0; any shape."""
        # Compared before the activation, which may work in place, and in this direction so that NaN stays NaN.
        closed = z <= self.threshold(z)
        value = self.activation(z)
        if self.training:
            return value - value.detach().masked_fill(~closed, 0)
        return value.masked_fill(closed, 0)

    def smooth(self, z: Tensor) -> Tensor:
        """Return the value with a smooth step, whose gradient includes the effect of opening and closing."""
        chance = self.chance(z)  # before the activation, which may work in place
        return self.activation(z) * chance


class JumpReLU(Jump):
    """An activation that is 0 up to a threshold and jumps to its own value there.

    Around a ReLU, J(z) = z where z > kappa, else 0: Erichson, Yao, Mahoney: JumpReLU: a retrofit defense strategy for
    adversarial attacks, 2019, arXiv:1904.03750. At kappa = 0 that is the ReLU. Around another activation the value
    above the threshold is that activation's: SiLU then also loses its negative part, at any kappa.

    Kappa is in the units of the pre-activation, so it has another meaning in each layer and for another scale of the
    input: the paper's 0 to 1.5 are for normalised images, the 0.0645 of the 2019 report for pixels in [0, 1].

    Args:
        kappa: Threshold, finite and at least 0.
        activation: Its value is kept above the threshold; None is a ReLU.

    Raises:
        ValueError: Kappa out of range.
    """

    def __init__(self, kappa: float, activation: nn.Module | None = None) -> None:
        super().__init__(activation)
        self.kappa = _checked(kappa, "kappa")

    def threshold(self, z: Tensor) -> float:
        return self.kappa

    def chance(self, z: Tensor) -> Tensor:
        return _step(z, self.kappa)

    def extra_repr(self) -> str:
        return f"kappa={self.kappa:g}"


class RandomJumpReLU(Jump):
    """A `JumpReLU` whose kappa is drawn from U(low, high): once a layer and forward, in eval mode too.

    The randomised variant of Erichson, Yao, Mahoney, 2019, arXiv:1904.03750, which draws from U(0.6 kappa, kappa). All
    examples of a batch share the draw, which comes from the device's generator.

    Args:
        low: Least kappa, at least 0.
        high: Largest kappa, finite and at least `low`.
        activation: Its value is kept above the threshold; None is a ReLU.

    Raises:
        ValueError: `low` or `high` out of range.
    """

    def __init__(self, low: float, high: float, activation: nn.Module | None = None) -> None:
        super().__init__(activation)
        self.low, self.high = _checked(low, "low"), _checked(high, "high")
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got low={low!r} and high={high!r}; swap them")

    def threshold(self, z: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * torch.rand((), device=z.device)

    def chance(self, z: Tensor) -> Tensor:
        """Return the chance that kappa is drawn below `z`: a ramp from low to high."""
        if self.low == self.high:
            return _step(z, self.low)
        return ((z - self.low) / (self.high - self.low)).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


def _step(z: Tensor, kappa: float) -> Tensor:
    """Return a sigmoid around kappa, a tenth of kappa wide."""
    return ((z - kappa) / (_WIDTH * kappa)).sigmoid() if kappa else (z > 0).to(z.dtype)


def _checked(value: float, name: str) -> float:
    """Return the threshold as a float; raise a ValueError unless it is at least 0 and finite."""
    check_not_negative(value, name, "; 0 is the plain ReLU")
    return float(value)


def _is_activation(module: nn.Module, types: tuple[type[nn.Module], ...] | None) -> bool:
    """Return whether a module is an activation: of PyTorch, of timm, or one of `types` where those are given."""
    if types is not None:
        return isinstance(module, types)
    return isinstance(module, ACTIVATIONS) or any(
        kind.__module__ in _TIMM_FILES and kind.__name__ in _TIMM_NAMES for kind in type(module).__mro__
    )


def replace_activations(
    net: nn.Module, build: Callable[[nn.Module], nn.Module], *, types: Iterable[type[nn.Module]] | None = None
) -> dict[str, type[nn.Module]]:
    """Replace every activation of a net, in place, and return which; also inside timm's fused layers.

    An activation that several places share is replaced by one module that they share. Gates (sigmoid, softmax) and
    functions called in a forward are not replaced: compare the returned paths with your net.

        replace_activations(net, lambda activation: JumpReLU(0.0645, activation))

    Args:
        net: The net; it is changed.
        build: From the old activation to its replacement, which may hold the old one.
        types: The classes to replace; None takes those of PyTorch and timm.

    Returns:
        Path -> class of every activation replaced, in the order of the net.

    Raises:
        ValueError: There is none to replace, the net is itself one or has jumps already, `build` is a module.
    """
    if isinstance(build, nn.Module):
        raise ValueError(
            f"build must be a function from the old activation to the new one, got a {type(build).__name__}; e.g. "
            "lambda activation: JumpReLU(0.0645, activation)"
        )
    wanted = None if types is None else tuple(types)
    name = type(net).__name__
    if _is_activation(net, wanted):
        raise ValueError(_ITSELF.format(net=name))
    places = list(net.named_modules(remove_duplicate=False))
    if jumps := [path for path, module in places if isinstance(module, Jump)]:
        raise ValueError(_TWICE.format(net=name, paths=", ".join(jumps[:3]) + (", ..." if len(jumps) > 3 else "")))
    found: dict[str, nn.Module] = {}
    for path, module in places:
        inside = any(path.startswith(f"{outer}.") for outer in found)  # parts of an activation are not replaced
        if _is_activation(module, wanted) and not inside:
            found[path] = module
    if not found:
        raise ValueError(_NONE.format(net=name))
    built: dict[int, nn.Module] = {}  # by the old one, so that shared modules stay shared
    for path, old in found.items():
        if id(old) not in built:
            built[id(old)] = build(old)
        parent, _, child = path.rpartition(".")
        setattr(net.get_submodule(parent), child, built[id(old)])
    return {path: type(module) for path, module in found.items()}
