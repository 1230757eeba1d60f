"""RandomizedSmoothing: an L2 certificate of a classifier's votes under Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.surroundings import held_in_eval
from robustlit.certify.certificate import Certificate, Certified, check_certifiable
from robustlit.checks import check_count, check_counts, check_positive, check_share
from robustlit.classifier import (
    NO_CLASS,
    check_labels,
    check_logits,
    default_batch_size,
    predicted,
    undefended,
    unwrapped,
)


@dataclass(frozen=True)
class RandomizedSmoothing(Certificate):
    """The radius within which the class of the most votes under Gaussian noise is the true one.

    Cohen, Rosenfeld, Kolter: Certified adversarial robustness via randomized smoothing, 2019, arXiv:1902.02918
    (CERTIFY): n0 draws choose the class, n others bound its probability from below (Clopper, Pearson), and the radius
    is sigma times the normal quantile of that. It speaks of `robustlit.defenses.Smoothed` with the same sigma and holds
    for each image with probability 1 - alpha. An abstention, and another class, are a radius of 0. All images get the
    same noise, so that a result does not depend on batch mates; float32 rounding of the noise is not covered.

    Args:
        eps: Budget in pixel units at which certified accuracy is to be quoted; L2 only.
        sigma: Standard deviation of the noise in pixel units; None: that of the `Smoothed` classifier.
        n0, n: Numbers of draws.
        alpha: Chance that a radius is wrong.
        seed: Seed of the noise.
        batch_size: Draws that are classified at once; None takes 500 of up to 32 x 32 pixels, fewer of larger images.

    Raises:
        ValueError: An argument out of range; in `run`, a model that is not smoothed, or with another sigma.
    """

    name: ClassVar[str] = "randomized_smoothing"
    eps: float = 0.5
    norm: str = field(default="l2", kw_only=True)
    sigma: float | None = None
    n0: int = 100
    n: int = 1000
    alpha: float = 0.001
    seed: int = 0
    batch_size: int | None = None

    @property
    def expected_passes(self) -> float:
        return self.n0 + self.n

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "l2":
            raise ValueError(f"norm must be l2 for RandomizedSmoothing, got {self.norm!r}; CROWN certifies in linf")
        if self.sigma is not None:
            check_positive(self.sigma, "sigma", "; it is in pixel units")
        check_share(self.alpha, "alpha")
        check_counts(self, "n0", "n")
        if self.batch_size is not None:
            check_count(self.batch_size, "batch_size")

    def proven(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.run(model, x, y)
        return found.radius >= eps, found.forwards, found.backwards

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, budgets: Sequence[float] = ()) -> Certified:
        """Certify each image; the arguments are those of `Certificate.run`, and every radius is exact."""
        check_certifiable(model, x, y)
        smoothed, net = unwrapped(model), undefended(model)
        own = getattr(smoothed, "sigma", None)
        if own is None or net is model:
            what = f"RandomizedSmoothing certifies votes under noise, and {type(smoothed).__name__} adds none"
            smoothed_model = f"robustlit.defenses.Smoothed(model, {self.sigma or 0.25:g})"
            raise ValueError(f"{what}: evaluate {smoothed_model}, or train recipe=smoothing (a trained net: base=RUN)")
        if self.sigma is not None and own != self.sigma:
            way_out = f"certify it with RandomizedSmoothing(sigma={own:g})"
            raise ValueError(f"the model is smoothed with sigma {own:g}, not {self.sigma:g}: {way_out}")
        _check_noise(smoothed, net, x[:1], float(own))
        with held_in_eval(net), torch.autocast(x.device.type, enabled=False), torch.no_grad():
            radii = [self._radius(net, image, int(label), float(own)) for image, label in zip(x, y, strict=True)]
        spent = torch.full_like(y.long(), self.n0 + self.n)
        return Certified(torch.tensor(radii, dtype=torch.float64, device=x.device), spent, torch.zeros_like(spent))

    def _radius(self, net: nn.Module, image: Tensor, label: int, sigma: float) -> float:
        from scipy.stats import beta  # takes most of a second to load, and nothing else here needs it

        draws = torch.Generator().manual_seed(self.seed)
        first = self._votes(net, image, self.n0, draws, sigma)
        check_labels(torch.tensor([label]), 1, len(first))
        if int(first.argmax()) != label:
            return 0.0
        votes = int(self._votes(net, image, self.n, draws, sigma)[label])
        least = float(beta.ppf(self.alpha, votes, self.n - votes + 1)) if votes else 0.0
        return sigma * NormalDist().inv_cdf(least) if least > 0.5 else 0.0

    def _votes(self, net: nn.Module, image: Tensor, count: int, draws: torch.Generator, sigma: float) -> Tensor:
        """Return how many of `count` draws get each class, (K,); logits that name none count for none."""
        votes: Tensor | None = None
        most = self.batch_size or default_batch_size(image.shape)
        for start in range(0, count, most):
            size = min(most, count - start)
            noise = torch.randn((size, *image.shape), generator=draws).to(image)
            logits = net(image + sigma * noise)
            named = predicted(check_logits(logits, size))
            each = named[named != NO_CLASS].bincount(minlength=logits.shape[1])
            votes = each if votes is None else votes + each
        assert votes is not None
        return votes


def _check_noise(smoothed: nn.Module, net: nn.Module, x: Tensor, sigma: float) -> None:
    """Raise a ValueError unless the model answers as `net` does for the image with Gaussian noise."""
    devices = [x.device] if x.device.type == "cuda" else []
    answers: list[Tensor] = []
    for answer in (smoothed, lambda z: net(z + sigma * torch.randn_like(z))):
        with torch.random.fork_rng(devices), held_in_eval(smoothed), torch.no_grad():
            torch.manual_seed(0)
            answers.append(answer(x))
    found, expected = answers
    tolerance = 1e-3 * float(expected.nan_to_num(posinf=0, neginf=0).abs().max())
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        name = type(smoothed).__name__
        raise ValueError(
            f"RandomizedSmoothing certifies the votes of a net under Gaussian noise, and {name} does not answer as its "
            f"undefended() does for x + {sigma:g} * torch.randn_like(x): use robustlit.defenses.Smoothed"
        )
