"""EvolutionStrategies: estimate the gradient of a model that has none from its logits on noisy images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustlit.attacks.draws import Draws
from robustlit.attacks.wrapper import Wrapper
from robustlit.checks import check_count, check_positive
from robustlit.classifier import check_not_hidden, default_batch_size


class EvolutionStrategies(Wrapper):
    """Give a classifier an estimated gradient, so that any gradient-based attack works on it; its output is unchanged.

    Salimans, Ho, Chen, Sidor, Sutskever: Evolution strategies as a scalable alternative to reinforcement learning,
    2017, arXiv:1703.03864; against classifiers (NES) Ilyas, Engstrom, Athalye, Lin: Black-box adversarial attacks with
    limited queries and information, 2018, arXiv:1804.08598. The gradient of <v, f(x)> is estimated by

        1 / (2 n sigma) sum_i <v, f(x + sigma u_i) - f(x - sigma u_i)> u_i,    u_i ~ N(0, 1),

    which is the gradient of f smoothed by noise of deviation sigma: it is not hidden by rounding, jumps and flat
    regions much narrower than sigma. It works on any model that returns logits,

        PGD(eps=0.2).run(EvolutionStrategies(model), x, y)

    The noise is a function of (seed, image) alone: results do not depend on the batch, and no generator is used. A
    backward costs 2 * samples forwards for each image, which the attack's pass counts do not include; several backwards
    of one forward share them. Noisy images exceed [0, 1] slightly. For a stochastic model the estimate averages over
    draws, so an attack needs only one estimate.

    Args:
        model: From images (B, C, H, W) in [0, 1] to logits (B, K), defended or not; only its forward is used.
        sigma: Standard deviation of the noise, in pixel units.
        samples: Pairs of noisy images per image, the n above. The cosine to the true gradient grows with
            sqrt(samples / pixels).
        seed: Seed of the noise.
        batch_size: Most images in one forward of the model; a larger batch of the attack is not split. None takes 500
            images of up to 32 x 32 pixels, and fewer of larger ones.

    Raises:
        ValueError: sigma, samples, seed or batch_size out of range, or the model hides a defense.
    """

    def __init__(
        self, model: nn.Module, sigma: float = 0.05, samples: int = 50, seed: int = 0, batch_size: int | None = None
    ) -> None:
        super().__init__(model)
        check_positive(sigma, "sigma", " pixel units; 0.05 sees through rounding to 8 levels")
        check_count(samples, "samples")
        if batch_size is not None:
            check_count(batch_size, "batch_size")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed must be a whole number, got {seed!r}")
        check_not_hidden(model)
        self.sigma, self.samples, self.seed, self.batch_size = float(sigma), samples, seed, batch_size

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits (B, K) for `x` (B, ...); where gradients are on, with the estimated gradient."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(x)
        return _Estimate.apply(x, self)

    def answers(self, x: Tensor) -> Tensor:
        """Return the model's logits without a graph; `x` is not changed."""
        with torch.no_grad():
            return self.model(x.detach().clone())  # a copy: the model may work in place

    def directions(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the noise u for images `x` (B, ...), in parts (m, B, ...) whose m add up to `samples`."""
        draws, left = Draws(self.seed, _content(x)), self.samples
        while left:
            count = min(left, max(1, self.most(x) // (2 * len(x))))
            yield torch.stack([draws.normal(x) for _ in range(count)])
            left -= count

    def most(self, x: Tensor) -> int:
        """Return how many images like `x` (B, ...) to classify at once."""
        return self.batch_size or default_batch_size(x.shape)

    def slopes(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the slopes (m, B, K) of the logits of `x` (B, ...) along each direction (m, B, ...)."""
        noisy = (x + self.sigma * torch.cat([noise, -noise])).flatten(0, 1)  # (2 m B, ...)
        logits = torch.cat([self.answers(piece) for piece in noisy.split(max(self.most(x), len(x)))])
        there, back = logits.unflatten(0, (2, len(noise), len(x)))
        return (there - back) / (2 * self.sigma)

    @property
    def draws(self) -> int:
        """One: an estimate already averages over draws."""
        return 1

    def extra_repr(self) -> str:
        """Return the settings, for printing."""
        return f"sigma={self.sigma:g}, samples={self.samples}, seed={self.seed}"


def _content(x: Tensor) -> Tensor:
    """Return a hash (B,) int64 of each image's pixels."""
    bits = x.detach().float().contiguous().view(torch.int32).to(torch.int64).flatten(1)
    place = torch.arange(1, bits.shape[1] + 1, device=x.device)
    return (bits * (place * 0x9E3779B97F4A7C1 + 1)).sum(1)  # overflow is fine in a hash


class _Estimate(torch.autograd.Function):
    """The logits with the estimated gradient. Slopes are kept, so that a second backward needs no forwards."""

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
