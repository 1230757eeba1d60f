"""What defenses with a detector share: its excess over the threshold, its calibration and its ROC curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.classifier import DRAWS, default_batch_size
from robustlit.defenses.fitted import frozen, full_precision
from robustlit.defenses.odds_test import OddsTest
from robustlit.threat import check_images


@dataclass
class ROC:
    """How a detector trades false alarms for detections, one point per threshold from the largest down."""

    false_positive_rate: np.ndarray  # (T,) share of the clean images that are flagged
    detection_rate: np.ndarray  # (T,) share of the adversarial images that are flagged
    auc: float  # area under the curve; 0.5 is chance


class Detector(nn.Module):
    """A classifier whose images an `OddsTest` flags; a subclass decides what happens to flagged images."""

    def __init__(self, net: nn.Module, test: OddsTest) -> None:
        super().__init__()
        self.net, self.test = net, test

    @property
    def stochastic(self) -> bool:
        """Whether two forwards of one image may differ, because the test draws fresh noise."""
        return self.test.fresh_noise

    @property
    def draws(self) -> int:
        """Number of forwards over which an attack averages gradients: at least 20 draws of each noise."""
        return max(1, -(-DRAWS // self.test.samples))

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the net's logits (B, K) and the excess of the score over the threshold (B,); >= 0 is flagged."""
        with full_precision(x):
            logits = self.net(x.clone())  # x is needed again, and a net may work in place
            return logits, self.test.excess(self.net, x, logits)

    def undefended(self) -> nn.Module:
        """Return the net without the defense."""
        return self.net

    def calibrate(self, rate: float) -> None:
        """Set another false-positive rate without fitting again; see `OddsTest.calibrate`."""
        self.test.calibrate(rate)

    def excess(self, x: Tensor) -> Tensor:
        """Return the excess of `detection` (N,) of many images, on the CPU."""
        check_images(x)
        with frozen(self) as device:
            return torch.cat(
                [self.detection(part.to(device))[1].cpu() for part in x.split(default_batch_size(x.shape))]
            )

    def roc(self, *, clean_x: Tensor, adversarial_x: Tensor) -> ROC:
        """Return the ROC curve from clean images (N, ...), not used for fitting, and adversarial ones (M, ...)."""
        from sklearn.metrics import auc, roc_curve  # takes half a second to import

        clean, adversarial = (self.excess(x).double().numpy() for x in (clean_x, adversarial_x))
        truth = np.concatenate([np.zeros(len(clean)), np.ones(len(adversarial))])
        false_positives, detections, _ = roc_curve(truth, np.concatenate([clean, adversarial]))
        return ROC(false_positives, detections, float(auc(false_positives, detections)))


def with_rejection(logits: Tensor, excess: Tensor) -> Tensor:
    """Return the logits (B, K) and a column that is the largest exactly where the excess (B,) is >= 0: (B, K + 1)."""
    best = logits.amax(1)
    # argmax takes the first of equal columns, and best + excess may round to best: one step up decides both.
    column = best + excess
    floor = torch.nextafter(best.detach(), torch.full_like(best, float("inf")))
    return torch.cat([logits, torch.where(excess >= 0, column.maximum(floor), column.minimum(best)).unsqueeze(1)], 1)
