"""DetectAndCorrect: flagged images are classified by the corrector, or rejected; the others by the net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.classifier import DRAWS
from robustlit.defenses.fitted import full_precision
from robustlit.defenses.logit_corrector import check_crafting, check_temperature, fgsm_logits
from robustlit.defenses.logit_detector import ROC, roc, with_rejection
from robustlit.defenses.odds_test import OddsTest
from robustlit.defenses.svc import LogitSVC


class DetectAndCorrect(nn.Module):
    """Logit detection and correction, figure 13 of the 2019 report, as one defended classifier.

    A. Martin, "Adversarial Examples", 2019, after Roth, Kilcher, Hofmann: The odds are odd, 2019, arXiv:1902.04818. An
    image that the detector flags is given the class that the SVC reads off its logits, or is rejected; any other keeps
    the net's logits. Detector and SVC are the parts without a net, `OddsTest` and `LogitSVC`: the net is held once.

    Args:
        net: the classifier to defend, from images (B, ...) in [0, 1] to logits (B, K).
        detector: the test; None takes `OddsTest()`.
        corrector: the SVC; None takes `LogitSVC()`. It is also fitted where flagged images are rejected.
        reject: True answers with K + 1 columns, the last of which means "rejected", and leaves the corrector out.
        eps: L-inf budgets of the FGSM examples that the SVC is fitted on, pixel units.
        examples: how many clean training images they are made of, each at every budget.
        temperature: how soft the decisions of `attack_view` are: in units of the detector's z-scores, and of the
            SVC's pair values.

    Raises:
        ValueError: an argument out of range; a forward before `fit`.
    """

    def __init__(
        self,
        net: nn.Module,
        detector: OddsTest | None = None,
        corrector: LogitSVC | None = None,
        reject: bool = False,
        eps: Sequence[float] = (0.1, 0.2, 0.3),
        examples: int = 2000,
        temperature: float = 0.3,
    ) -> None:
        super().__init__()
        self.eps, self.examples = check_crafting(eps, examples)
        self.temperature = check_temperature(temperature)
        self.net = net
        self.test = OddsTest() if detector is None else detector
        self.svc = LogitSVC() if corrector is None else corrector
        self.rejects = reject

    @property
    def stochastic(self) -> bool:
        """Whether two forwards of one image may differ: with a detector that draws fresh noise."""
        return self.test.fresh_noise

    @property
    def draws(self) -> int:
        """Over how many forwards an attack averages its gradients, so that it sees at least 20 draws of each noise."""
        return max(1, -(-DRAWS // self.test.samples))

    def forward(self, x: Tensor) -> Tensor:
        """(B, K): the net's logits, for flagged images the SVC's scores; (B, K + 1) as `LogitDetector` to reject."""
        logits, excess = self.detection(x)
        if self.rejects:
            return with_rejection(logits, excess)
        return torch.where((excess >= 0).unsqueeze(1), self.svc(logits).to(logits), logits)

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The net's logits (B, K), and by how much the score exceeds the threshold (B,): 0 and above is flagged."""
        with full_precision(x):
            logits = self.net(x)
            return logits, self.test.excess(self.net, x, logits)

    def correction(self, logits: Tensor) -> Tensor:
        """The SVC's scores (B, K) with soft votes, differentiable with respect to the net's logits (B, K)."""
        return self.svc.soft(logits, self.temperature).to(logits)

    def attack_view(self) -> nn.Module:
        """A differentiable twin, see `SoftDecision`; itself where it rejects: that is differentiable as it is."""
        return self if self.rejects else SoftDecision(self)

    def undefended(self) -> nn.Module:
        """The net without the defense."""
        return self.net

    def fit(self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int = 0) -> None:
        """Fits the detector on clean images and the SVC on FGSM examples that it makes of them.

        Args:
            clean: images (N, ...) in [0, 1] that the net was trained on, and their classes (N,).
            held_out: clean images and classes not used in training, for the detector's threshold.
            seed: of the noise, and of which clean images are used.

        Raises:
            ValueError: as `OddsTest.fit`; a class without examples.
        """
        self.test.fit(self.net, clean=clean, held_out=held_out, seed=seed)
        self.svc.fit(*fgsm_logits(self.net, clean, self.eps, self.examples, seed))

    def calibrate(self, rate: float) -> None:
        """Sets another false-positive rate without fitting again; see `OddsTest.calibrate`."""
        self.test.calibrate(rate)

    def roc(self, *, clean_x: Tensor, adversarial_x: Tensor) -> ROC:
        """The trade of false alarms for detections; see `roc` of the logit detector."""
        return roc(self, clean_x=clean_x, adversarial_x=adversarial_x)


class SoftDecision(nn.Module):
    """The twin of a `DetectAndCorrect` that an adaptive attacker differentiates.

    Log probabilities of a mixture: with p = sigmoid(excess / temperature), the net's class distribution has weight
    1 - p and the corrector's p.
    """

    def __init__(self, model: DetectAndCorrect) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Log probabilities (B, K)."""
        logits, excess = self.model.detection(x)
        odds = (excess / self.model.temperature).unsqueeze(1)
        return torch.logaddexp(
            F.logsigmoid(-odds) + logits.log_softmax(1),
            F.logsigmoid(odds) + self.model.correction(logits).log_softmax(1),
        )
