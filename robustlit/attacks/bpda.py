"""BPDA: the value of a model or layer that hides its gradient, with the gradient of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.classifier import draws_of, is_stochastic, undefended

_SHAPES = (
    "backward must return the shape that the model returns, {value}, got {through}; without a backward the gradient "
    "passes straight through, which suits a layer that keeps the shape of the image: for a whole classifier give "
    "backward=a differentiable classifier with as many classes"
)


class BPDA(nn.Module):
    """Backward pass differentiable approximation: forward as `model`, backward as `backward`.

    Athalye, Carlini, Wagner: Obfuscated gradients give a false sense of security, 2018, arXiv:1802.00420. The output
    is that of `model` to the last bit, so an attack is judged on the real thing; the gradient is that of `backward` at
    the same input. A layer of a classifier is replaced where it stands,

        nn.Sequential(BPDA(jpeg), net)                   # straight through: the gradient of the identity
        nn.Sequential(BPDA(denoiser, backward=blur), net)

    and a whole classifier is wrapped, `BPDA(model, backward=surrogate)`. Noise belongs outside of it, where value and
    gradient share the draw: `EOT(nn.Sequential(noise, BPDA(rounding), net))`.

    `model` gets no gradients, so neither do its parameters: train first, then wrap. Its state dict is that of the two
    under the names "model." and "surrogate."; load the weights before wrapping.

    Args:
        model: a classifier from images (B, C, H, W) in [0, 1] to logits (B, K), or a layer, or any function of a batch
            that returns a tensor. It needs no gradient, and runs without one.
        backward: what is differentiated in its place, from the same input to the same shape. None is the identity.

    Raises:
        ValueError: on the forward, when `model` returns no tensor or the shapes of the two differ.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        backward: nn.Module | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model  # a module or a function
        self.surrogate = backward

    def forward(self, x: Tensor) -> Tensor:
        """The output of `model` for `x` (B, ...); where gradients are on, attached to that of `backward`."""
        if not torch.is_grad_enabled():
            return self.model(x)
        with torch.no_grad():
            value = self.model(x.detach().clone())  # copies: either may work in place, and both need the input
        if not isinstance(value, Tensor):
            raise ValueError(f"the model in BPDA must return a tensor, got {type(value).__name__}")
        through = x if self.surrogate is None else self.surrogate(x.clone())
        if through.shape != value.shape:
            raise ValueError(_SHAPES.format(value=tuple(value.shape), through=tuple(through.shape)))
        return _Swap.apply(value, through)

    @property
    def stochastic(self) -> bool:
        """That of the wrapped model."""
        return is_stochastic(self.model)

    @property
    def draws(self) -> int:
        """Over how many draws a gradient is averaged, as the wrapped model says."""
        return draws_of(self.model)

    def attack_view(self) -> nn.Module:
        """Itself: its value is the model's own, so what is differentiated may also judge."""
        return self

    def undefended(self) -> nn.Module:
        """The wrapped model without its defense; itself where the wrapped model does not say."""
        inner = undefended(self.model)
        return self if inner is self.model else inner


class _Swap(torch.autograd.Function):
    """The first argument, with the gradient of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, through: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
