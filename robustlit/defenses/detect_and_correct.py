"""DetectAndCorrect: a corrector classifies flagged images, or they are rejected; the net classifies the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.defenses.detection import Detector, with_rejection
from robustlit.defenses.fitted import AttackView
from robustlit.defenses.logit_corrector import check_crafting, check_temperature, fgsm_logits
from robustlit.defenses.odds_test import OddsTest
from robustlit.defenses.svc import LogitSVC


class DetectAndCorrect(Detector):
    """Logit detection and correction, figure 13 of the 2019 report, as one defended classifier.

    A. Martin, "Adversarial Examples", 2019, after Roth, Kilcher, Hofmann: The odds are odd, 2019, arXiv:1902.04818. A
    flagged image gets the class that the SVC predicts from its logits, or is rejected; any other keeps the net's
    logits.

    Args:
        net: The classifier to defend, from images (B, ...) in [0, 1] to logits (B, K).
        detector: The test; None takes `OddsTest()`.
        corrector: The SVC; None takes `LogitSVC()`. It is also fitted where flagged images are rejected.
        reject: True returns K + 1 columns, the last of which means "rejected", and does not use the corrector.
        eps: L-inf budgets of the FGSM examples that the SVC is fitted on, pixel units.
        examples: Number of clean training images that they are made of, each at every budget.
        temperature: Softness of `attack_view`'s decisions, in units of the z-scores and of the SVC's pair values.

    Raises:
        ValueError: An argument is out of range; a forward before `fit`.
    """

    def __init__(
        self, net: nn.Module, detector: OddsTest | None = None, corrector: LogitSVC | None = None, reject: bool = False,
        eps: Sequence[float] = (0.1, 0.2, 0.3), examples: int = 2000, temperature: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__(net, OddsTest() if detector is None else detector)
        self.eps, self.examples = check_crafting(eps, examples)
        self.temperature = check_temperature(temperature)
        self.svc = LogitSVC() if corrector is None else corrector
        self.rejects = reject

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K): the net's logits, or the SVC's scores of flagged images; (B, K + 1) where it rejects."""
        logits, excess = self.detection(x)
        if self.rejects:
            return with_rejection(logits, excess)
        return torch.where((excess >= 0).unsqueeze(1), self.svc(logits).to(logits), logits)

    def correction(self, logits: Tensor) -> Tensor:
        """Return the SVC's scores (B, K) with soft votes, differentiable with respect to the logits (B, K)."""
        return self.svc.soft(logits, self.temperature).to(logits)

    def soft_decision(self, x: Tensor) -> Tensor:
        """Return log probabilities (B, K): a mixture with weight sigmoid(excess / temperature) on the corrector's."""
        logits, excess = self.detection(x)
        odds = (excess / self.temperature).unsqueeze(1)
        return torch.logaddexp(
            F.logsigmoid(-odds) + logits.log_softmax(1), F.logsigmoid(odds) + self.correction(logits).log_softmax(1)
        )

    def attack_view(self) -> nn.Module:
        """Return `soft_decision` as a module; the model itself where it rejects, which is differentiable."""
        return self if self.rejects else AttackView(self, self.soft_decision)

    def fit(self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], seed: int = 0) -> None:
        """Fit the detector as `OddsTest.fit` does, and the SVC on FGSM examples made of the clean images.

        Raises:
            ValueError: See `OddsTest.fit`; a class has no examples.
        """
        self.test.fit(self.net, clean=clean, held_out=held_out, seed=seed)
        self.svc.fit(*fgsm_logits(self.net, clean, self.eps, self.examples, seed))
