"""The interface of a certificate: the largest budget at which an example is proven robust."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.certify.bounds import check_logits_in_bounds
from robustlit.checks import check_count
from robustlit.classifier import check_labels, check_not_hidden
from robustlit.threat import check_eps, check_images, check_norm

_CLOSE = 0.01  # a radius is searched to within this share of it
_SMALLEST = 2.0**-10  # of eps: smaller radii count as 0


@dataclass
class Certified:
    """What a certificate proved, one entry per example.

    Attributes:
        radius: (B,) pixel units: no point of the image's ball of this radius, cut to [0, 1], gets another class than
            the true one. 0 where nothing was proven.
        forwards: (B,) passes through the net that were spent.
        backwards: (B,) linear functions that were taken back through it.
    """

    radius: Tensor
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class Certificate(ABC):
    """A lower bound of robustness in some norm. Subclasses are frozen dataclasses that implement `proven`.

    Args:
        eps: Budget in pixel units at which certified accuracy is to be quoted: (0, 1] for "linf", positive for "l2".
        norm: "linf" or "l2".
        rounds: How many budgets are tried on each example, at most. 1 asks at eps alone.
    """

    name: ClassVar[str]
    eps: float = 0.3
    norm: str = field(default="linf", kw_only=True)
    rounds: int = field(default=10, kw_only=True)

    @property
    def expected_passes(self) -> float:
        """Passes for an image, roughly; for the progress that is shown."""
        return 3.0 * self.rounds

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_eps(self.eps, check_norm(self.norm)))
        check_count(self.rounds, "rounds")

    def check(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Raise a ValueError if the certificate does not apply to a model or its images."""
        check_certifiable(model, x, y)

    @abstractmethod
    def proven(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether each example is proven robust within `eps` (B,), and the forwards and backwards: (B,) each."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, budgets: Sequence[float] = ()) -> Certified:
        """Search the largest radius that is proven, per example.

        The radius is the largest budget tried that was proven: first eps and `budgets`, by halving their list, so that
        certified accuracy is exact at these; then budgets in between, until they are within 1 % of each other.

        Args:
            model: From images (B, C, H, W) in [0, 1] to logits (B, K).
            x, y: Images in [0, 1] and their true classes (B,). A misclassified image is proven nowhere.
            budgets: Further budgets to be exact at, in pixel units.

        Raises:
            ValueError: Images outside [0, 1], labels out of range, a stochastic model, one in half precision, or a
                layer that is not known.
        """
        self.check(model, x, y)
        y, largest = y.long(), 1.0 if self.norm == "linf" else math.inf
        low, high = (x.new_full((len(x),), end, dtype=torch.float64) for end in (0.0, math.inf))
        forwards, backwards = (torch.zeros_like(y) for _ in range(2))
        wanted = torch.tensor(sorted({self.eps, *budgets}), dtype=torch.float64, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.rounds + len(wanted).bit_length() - 1):
            trial = self._next(low[rows], high[rows], wanted).clamp_max(largest)
            with torch.no_grad():
                found, some, others = self.proven(model, x[rows], y[rows], trial)
            forwards[rows], backwards[rows] = forwards[rows] + some, backwards[rows] + others
            low[rows] = torch.where(found, trial, low[rows])
            high[rows] = torch.where(found, high[rows], trial)
            close = (high - low <= _CLOSE * low) | (high <= self.eps * _SMALLEST) | (low >= largest)
            between = (wanted > low.unsqueeze(1)) & (wanted < high.unsqueeze(1))
            rows = torch.nonzero(~close | between.any(1)).squeeze(1)
            if not len(rows):
                break
        return Certified(low, forwards, backwards)

    def _next(self, low: Tensor, high: Tensor, wanted: Tensor) -> Tensor:
        """Return the next budget (b,) to try: the middle one of those wanted in (low, high), else one in between."""
        inside = (wanted > low.unsqueeze(1)) & (wanted < high.unsqueeze(1))  # (b, W)
        count, first = inside.sum(1), inside.int().argmax(1)
        middle = wanted[(first + count // 2).clamp_max(len(wanted) - 1)]
        unknown = torch.where(high.isinf(), 2 * low, torch.where(low > 0, (low + high) / 2, high / 4))
        return torch.where(count > 0, middle, unknown)


class BoundPropagation(Certificate):
    """A certificate whose `proven` propagates bounds through every layer (`bounds.logits_of`)."""

    def check(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Also raise a ValueError if the net's logits lie outside their bounds."""
        super().check(model, x, y)
        check_logits_in_bounds(model, x, self.norm)


def check_certifiable(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise a ValueError for images or labels out of range, a hidden defense, or a net in half precision."""
    check_images(x)
    check_labels(y, len(x))
    check_not_hidden(model)
    narrow = {p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize < 4}
    if narrow:
        kind = str(narrow.pop()).removeprefix("torch.")
        raise ValueError(f"the net computes in {kind}, and the proof covers the rounding of float32: use model.float()")
