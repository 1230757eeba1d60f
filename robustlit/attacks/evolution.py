"""EvolutionStrategies: a gradient for a model that has none, from its answers to noisy images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks.draws import Draws
from robustlit.checks import check_count
from robustlit.classifier import is_stochastic, undefended


class EvolutionStrategies(nn.Module):
    """A classifier with its own value and an estimated gradient, so that any gradient attack works on it.

    Salimans, Ho, Chen, Sidor, Sutskever: Evolution strategies as a scalable alternative to reinforcement learning,
    2017, arXiv:1703.03864; against classifiers (NES) Ilyas, Engstrom, Athalye, Lin: Black-box adversarial attacks with
    limited queries and information, 2018, arXiv:1804.08598. The gradient of <v, f(x)> is estimated by

        1 / (2 n sigma) sum_i <v, f(x + sigma u_i) - f(x - sigma u_i)> u_i,    u_i ~ N(0, 1),

    which is that of f blurred by noise of deviation sigma: rounding, jumps and flat stretches much narrower than sigma
    are seen through. It works on whatever answers with logits,

        PGD(eps=0.2).run(EvolutionStrategies(model), x, y)

    The noise is a function of (seed, image) alone: results do not depend on the batch, and no generator is touched. A
    backward costs 2 * samples forwards for each image, which the attack's counters do not see: they count the backward
    as one. Several backwards of one forward share them. Noisy images leave [0, 1] a little, so the model must not
    insist on it. Of a stochastic model the estimate averages over as many draws, so an attack asks for it once.

    Args:
        model: from images (B, C, H, W) in [0, 1] to logits (B, K), defended or not; its forward alone is used.
        sigma: standard deviation of the noise, in pixel units.
        samples: pairs of noisy images for an image, the n above. The cosine to the true gradient grows with
            sqrt(samples / pixels).
        seed: of the noise.
        batch_size: at most so many images go through the model at once, or as many as the attack's own batch has.

    Raises:
        ValueError: sigma, samples, seed or batch_size out of range.
    """

    def __init__(
        self, model: nn.Module, sigma: float = 0.05, samples: int = 50, seed: int = 0, batch_size: int = 500
    ) -> None:
        super().__init__()
        if isinstance(sigma, bool) or not isinstance(sigma, Real) or not 0 < float(sigma) < math.inf:
            raise ValueError(
                f"sigma must be positive and finite, in pixel units, got {sigma!r}; 0.05 sees through rounding to 8 "
                "levels"
            )
        check_count(samples, "samples")
        check_count(batch_size, "batch_size")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed must be a whole number, got {seed!r}")
        self.model: nn.Module = model
        self.sigma: float = float(sigma)
        self.samples: int = samples
        self.seed: int = seed
        self.batch_size: int = batch_size

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits (B, K) for `x` (B, ...); where gradients are on, with the estimate as their gradient."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(x)
        return _Estimate.apply(x, self)

    def answers(self, x: Tensor) -> Tensor:
        """The model's logits without a graph; `x` is left as it is."""
        with torch.no_grad():
            return self.model(x.detach().clone())  # a copy: the model may work in place

    def directions(self, x: Tensor) -> Iterator[Tensor]:
        """The noise u for images `x` (B, ...), in pieces (m, B, ...) whose m add up to `samples`."""
        draws, left = Draws(self.seed, _content(x)), self.samples
        while left:
            count = min(left, max(1, self.batch_size // (2 * len(x))))
            yield torch.stack([draws.normal(x) for _ in range(count)])
            left -= count

    def slopes(self, x: Tensor, noise: Tensor) -> Tensor:
        """How the logits of `x` (B, ...) change along each direction (m, B, ...): (m, B, K)."""
        noisy = (x + self.sigma * torch.cat([noise, -noise])).flatten(0, 1)  # (2 m B, ...)
        logits = torch.cat([self.answers(piece) for piece in noisy.split(max(self.batch_size, len(x)))])
        there, back = logits.unflatten(0, (2, len(noise), len(x)))
        return (there - back) / (2 * self.sigma)

    @property
    def stochastic(self) -> bool:
        """That of the wrapped model."""
        return is_stochastic(self.model)

    @property
    def draws(self) -> int:
        """One estimate is an average over draws already."""
        return 1

    def attack_view(self) -> nn.Module:
        """Itself: its value is the model's own."""
        return self

    def undefended(self) -> nn.Module:
        """The wrapped model without its defense; itself where the wrapped model does not say."""
        inner = undefended(self.model)
        return self if inner is self.model else inner

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"sigma={self.sigma:g}, samples={self.samples}, seed={self.seed}"


def _content(x: Tensor) -> Tensor:
    """(B,) int64 that tells images apart by their pixels, wherever they stand in a batch."""
    bits = x.detach().float().contiguous().view(torch.int32).to(torch.int64).flatten(1)
    place = torch.arange(1, bits.shape[1] + 1, device=x.device)
    return (bits * (place * 0x9E3779B97F4A7C1 + 1)).sum(1)  # wraps around, as a hash may


class _Estimate(torch.autograd.Function):
    """The answers, with the estimated gradient. Slopes are kept, so a second backward needs no forwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: EvolutionStrategies) -> Tensor:
        ctx.save_for_backward(x)
        ctx.model, ctx.slopes = model, []
        return model.answers(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        total = torch.zeros_like(x)
        for number, noise in enumerate(ctx.model.directions(x)):
            if number == len(ctx.slopes):
                ctx.slopes.append(ctx.model.slopes(x, noise))
            slopes = ctx.slopes[number]  # (m, B, K)
            along = (slopes * gradient.to(slopes.dtype)).sum(2).to(x.dtype)
            total += torch.einsum("mb,mbp->bp", along, noise.flatten(2)).view_as(x)
        return total / ctx.model.samples, None
