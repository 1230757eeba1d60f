"""LogitDetector: reject images whose logits do not move under noise as those of clean images do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustlit.defenses.detection import Detector, with_rejection
from robustlit.defenses.odds_test import OddsTest


class LogitDetector(Detector):
    """A classifier with one more logit, "rejected", which is the largest exactly where the image is flagged.

    Roth, Kilcher, Hofmann: The odds are odd, 2019, arXiv:1902.04818; the test is `OddsTest`. It is fitted on clean
    images alone, and is differentiable: an adaptive attack needs no other view of it.

    Args:
        net: The classifier to defend, from images (B, ...) in [0, 1] to logits (B, K).
        false_positive_rate, noises, scales, samples, fresh_noise, examples: See `OddsTest`.

    Raises:
        ValueError: An argument is out of range; a forward before `fit`.
    """

    rejects = True

    def __init__(
        self, net: nn.Module, false_positive_rate: float = 0.01, noises: Sequence[str] = ("sign",),
        scales: Sequence[float] = (0.03,), samples: int = 4, fresh_noise: bool = True, examples: int = 10_000,
    ) -> None:  # fmt: skip
        super().__init__(net, OddsTest(false_positive_rate, noises, scales, samples, fresh_noise, examples))

    @property
    def false_positive_rate(self) -> float:
        """The share of clean images that it is calibrated to reject."""
        return self.test.false_positive_rate

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K + 1): the net's logits, and the largest of them plus the excess of the score."""
        return with_rejection(*self.detection(x))

    def attack_view(self) -> nn.Module:
        """Return the model itself, which is differentiable."""
        return self

    def fit(self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int = 0) -> None:
        """Fit the test on clean images and calibrate it on held-out clean ones; see `OddsTest.fit`."""
        self.test.fit(self.net, clean=clean, held_out=held_out, seed=seed)
