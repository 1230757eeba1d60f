"""BPDA: the output of a model or layer that hides its gradient, with the gradient of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks.wrapper import Wrapper
from robustlit.classifier import check_not_hidden, draws_of

Function = nn.Module | Callable[[Tensor], Tensor]
_SHAPES = (
    "backward must return the shape that the model returns, {value}, got {through}; without a backward the gradient "
    "passes straight through, which suits a layer that keeps the shape of the image: for a whole classifier give "
    "backward=a differentiable classifier with as many classes"
)


class BPDA(Wrapper):
    """Backward pass differentiable approximation: forward as `model`, backward as `backward`.

    Athalye, Carlini, Wagner: Obfuscated gradients give a false sense of security, 2018, arXiv:1802.00420. The output
    is exactly that of `model`, so an attack is judged on the real model; the gradient is that of `backward` at the same
    input. Replace a layer of a classifier in place,

        nn.Sequential(BPDA(jpeg), net)                   # straight through: the gradient of the identity
        nn.Sequential(BPDA(denoiser, backward=blur), net)

    or wrap a whole classifier, `BPDA(model, backward=surrogate)`. Put noise outside of it, where output and gradient
    share the draw: `EOT(nn.Sequential(noise, BPDA(rounding), net))`.

    The parameters of `model` get no gradients: train, or load the weights, before wrapping.

    Args:
        model: A classifier from images (B, C, H, W) in [0, 1] to logits (B, K), a layer, or any function of a batch
            that returns a tensor. It runs without gradients.
        backward: What is differentiated instead, from the same input to the same shape. None is the identity.

    Raises:
        ValueError: If `model` hides a defense; at the forward, if it does not return a tensor or the two shapes differ.
    """

    def __init__(self, model: Function, backward: Function | None = None) -> None:
        super().__init__(model)
        if isinstance(model, nn.Module):
            check_not_hidden(model)
        self.surrogate = backward

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of `model` for `x` (B, ...); where gradients are on, with the gradient of `backward`."""
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
    def draws(self) -> int:
        """Number of draws that a gradient is averaged over: that of the wrapped model."""
        return draws_of(self.model)


class _Swap(torch.autograd.Function):
    """Return the first argument, with the gradient of the second."""

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
