"""LogitDetector: rejects images whose logits move under noise as those of clean images do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.classifier import DRAWS
from robustlit.defenses.fitted import CHUNK, full_precision, held_still
from robustlit.defenses.odds_test import OddsTest
from robustlit.threat import check_images


@dataclass
class ROC:
    """How a detector trades false alarms for detections, a point for each threshold from the largest down.

    Attributes:
        false_positive_rate: (T,) share of the clean images that are flagged.
        detection_rate: (T,) share of the adversarial images that are flagged.
        auc: area under the curve; 0.5 is chance.
    """

    false_positive_rate: np.ndarray
    detection_rate: np.ndarray
    auc: float


class LogitDetector(nn.Module):
    """A classifier that may answer "rejected": its logits, and a last column that wins when the image is flagged.

    Roth, Kilcher, Hofmann: The odds are odd, 2019, arXiv:1902.04818; the test is `OddsTest`. It is fitted on clean
    images alone, and differentiable: to defeat it, attack it as it is.

    Args:
        net: the classifier to defend, from images (B, ...) in [0, 1] to logits (B, K).
        false_positive_rate, noises, scales, samples, fresh_noise, examples: those of `OddsTest`.

    Raises:
        ValueError: an argument out of range; a forward before `fit`.
    """

    rejects = True

    def __init__(
        self,
        net: nn.Module,
        false_positive_rate: float = 0.01,
        noises: Sequence[str] = ("sign",),
        scales: Sequence[float] = (0.03,),
        samples: int = 4,
        fresh_noise: bool = True,
        examples: int = 10_000,
    ) -> None:
        super().__init__()
        self.net = net
        self.test = OddsTest(false_positive_rate, noises, scales, samples, fresh_noise, examples)

    @property
    def stochastic(self) -> bool:
        """Whether two forwards of one image may differ: with fresh noise."""
        return self.test.fresh_noise

    @property
    def draws(self) -> int:
        """Over how many forwards an attack averages its gradients, so that it sees at least 20 draws of each noise."""
        return max(1, -(-DRAWS // self.test.samples))

    @property
    def false_positive_rate(self) -> float:
        """The share of clean images that it is calibrated to reject."""
        return self.test.false_positive_rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, K + 1): the net's logits, and the largest of them plus the excess of the detector's score."""
        return with_rejection(*self.detection(x))

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The net's logits (B, K), and by how much the score exceeds the threshold (B,): 0 and above is flagged."""
        with full_precision(x):
            logits = self.net(x)
            return logits, self.test.excess(self.net, x, logits)

    def attack_view(self) -> nn.Module:
        """Itself: it is differentiable end to end."""
        return self

    def undefended(self) -> nn.Module:
        """The net without the detector."""
        return self.net

    def fit(self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int = 0) -> None:
        """Learns from clean images and calibrates on held-out clean ones; see `OddsTest.fit`."""
        self.test.fit(self.net, clean=clean, held_out=held_out, seed=seed)

    def calibrate(self, rate: float) -> None:
        """Sets another false-positive rate without fitting again; see `OddsTest.calibrate`."""
        self.test.calibrate(rate)

    def roc(self, *, clean_x: Tensor, adversarial_x: Tensor) -> ROC:
        """The trade of false alarms for detections; see `roc`."""
        return roc(self, clean_x=clean_x, adversarial_x=adversarial_x)


def with_rejection(logits: Tensor, excess: Tensor) -> Tensor:
    """(B, K + 1): the logits (B, K) and a column that is the largest exactly where the excess (B,) is at least 0."""
    best = logits.amax(1)
    # Of equal columns argmax takes the first, and x + (a little) may be x: the smallest step up decides both.
    column = best + excess
    floor = torch.nextafter(best.detach(), torch.full_like(best, float("inf")))
    return torch.cat([logits, torch.where(excess >= 0, column.maximum(floor), column.minimum(best)).unsqueeze(1)], 1)


def excess_of(model: nn.Module, x: Tensor) -> Tensor:
    """(N,) the excess that `model.detection` gives to many images, on the CPU, a chunk at a time."""
    check_images(x)
    with held_still(model) as device:
        return torch.cat([model.detection(part.to(device))[1].cpu() for part in x.split(CHUNK)])  # type: ignore[operator]


def roc(model: nn.Module, *, clean_x: Tensor, adversarial_x: Tensor) -> ROC:
    """The receiver operating characteristic of a model with a detector.

    Args:
        model: with a fitted `detection`.
        clean_x: images (N, ...) in [0, 1] that no attack has touched, and that did not serve to fit it.
        adversarial_x: images (M, ...) that an attack made.
    """
    from sklearn.metrics import auc, roc_curve  # half a second that only who asks should pay

    clean, adversarial = (excess_of(model, x).double().numpy() for x in (clean_x, adversarial_x))
    truth = np.concatenate([np.zeros(len(clean)), np.ones(len(adversarial))])
    false_positives, detections, _ = roc_curve(truth, np.concatenate([clean, adversarial]))
    return ROC(false_positives, detections, float(auc(false_positives, detections)))
