"""LogitCorrector: predict the true class from the logits of an adversarial image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlit.attacks.fgsm import FGSM
from robustlit.attacks.losses import LogOdds
from robustlit.checks import check_count, check_positive
from robustlit.classifier import default_batch_size
from robustlit.defenses.fitted import AttackView, check_clean, frozen, subset
from robustlit.defenses.svc import LogitSVC
from robustlit.threat import check_eps


class LogitCorrector(nn.Module):
    """A net and a support vector classifier on its logits, fitted on those of FGSM examples.

    The correction of the 2019 report, section 9.3 (A. Martin, "Adversarial Examples"). It crafts the examples itself,
    from clean training images, and labels their logits with the true classes. It is meant for images that a detector
    has flagged, see `DetectAndCorrect`; alone it classifies every image.

    Args:
        net: The classifier, from images (B, ...) in [0, 1] to logits (B, K).
        penalty, gamma: See `LogitSVC`.
        eps: L-inf budgets of the FGSM examples, pixel units.
        examples: Number of clean training images used, each at every budget.
        temperature: Softness of the votes in `attack_view`, in units of the SVC's pair values.

    Raises:
        ValueError: An argument is out of range; a forward before `fit`.
    """

    stochastic = False

    def __init__(
        self, net: nn.Module, penalty: float = 10.0, gamma: float | None = None, eps: Sequence[float] = (0.1, 0.2, 0.3),
        examples: int = 2000, temperature: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.eps, self.examples = check_crafting(eps, examples)
        self.temperature = check_temperature(temperature)
        self.net = net
        self.svc = LogitSVC(penalty, gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, K), float64: the SVC's votes, and fractions that break ties."""
        return self.svc(self.net(x))

    def soft(self, x: Tensor) -> Tensor:
        """Return scores (B, K), float64, with soft votes."""
        return self.svc.soft(self.net(x), self.temperature)

    def attack_view(self) -> nn.Module:
        """Return the same with soft votes, as the whole votes of `forward` have no gradient."""
        return AttackView(self, self.soft)

    def undefended(self) -> nn.Module:
        """Return the net without the corrector."""
        return self.net

    def fit(
        self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor] | None = None, seed: int = 0
    ) -> None:
        """Fit the SVC on FGSM examples of clean training images (N, ...) and their classes (N,).

        `held_out` is not used: every defense is given the validation split.

        Raises:
            ValueError: The net is wrong on most of the images (they look adversarial), or a class has no examples.
        """
        self.svc.fit(*fgsm_logits(self.net, clean, self.eps, self.examples, seed))


def fgsm_logits(
    net: nn.Module, clean: tuple[Tensor, Tensor], eps: Sequence[float], examples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) of FGSM examples at every budget, and the true classes (N,), on the CPU.

    Misclassified images are attacked too, and unsuccessful examples are kept.
    """
    x, y = subset(clean, examples, seed)
    check_clean(net, (x, y), "LogitCorrector")
    logits, labels = [], []
    with frozen(net) as device:
        at_once = default_batch_size(x.shape)
        for part, label in zip(x.split(at_once), y.split(at_once), strict=True):
            part, label = part.to(device), label.to(device)
            for budget in eps:
                adversarial = FGSM(eps=budget).maximise(net, part, LogOdds(label))
                logits.append(net(adversarial).float().cpu())
                labels.append(label.cpu())
    return torch.cat(logits), torch.cat(labels)


def check_crafting(eps: Sequence[float], examples: int) -> tuple[tuple[float, ...], int]:
    """Return the budgets and the number of images of `fgsm_logits`; raise a ValueError where they are unusable."""
    if not eps:
        raise ValueError("eps must give at least one budget for the FGSM examples, got none")
    check_count(examples, "examples")
    return tuple(check_eps(budget) for budget in eps), examples


def check_temperature(temperature: float) -> float:
    """Return `temperature`; raise a ValueError unless it is positive and finite."""
    check_positive(temperature, "temperature", "; the decisions of forward are hard ones")
    return float(temperature)
