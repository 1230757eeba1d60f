"""LogitCorrector: reads the true class off the logits of an adversarial image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlit.attacks.fgsm import FGSM
from robustlit.attacks.losses import Criterion
from robustlit.defenses.fitted import CHUNK, check_clean, held_still, some
from robustlit.defenses.svc import LogitSVC
from robustlit.threat import check_eps


class LogitCorrector(nn.Module):
    """A net whose logits are read by a support vector classifier that was fitted on those of FGSM examples.

    The correction of the 2019 report, section 9.3 (A. Martin, "Adversarial Examples"). It crafts the examples itself,
    from clean training images, and labels their logits with the true classes. It is meant for images that a detector
    has flagged, see `DetectAndCorrect`; alone it reads the logits of every image.

    Args:
        net: the classifier, from images (B, ...) in [0, 1] to logits (B, K).
        penalty, gamma: those of `LogitSVC`.
        eps: L-inf budgets of the FGSM examples, pixel units.
        examples: how many clean training images are used, each at every budget.
        temperature: of the soft votes in `attack_view`, in units of the SVC's pair values.

    Raises:
        ValueError: an argument out of range; a forward before `fit`.
    """

    stochastic = False

    def __init__(
        self,
        net: nn.Module,
        penalty: float = 10.0,
        gamma: float | None = None,
        eps: Sequence[float] = (0.1, 0.2, 0.3),
        examples: int = 2000,
        temperature: float = 0.3,
    ) -> None:
        super().__init__()
        self.eps, self.examples = check_crafting(eps, examples)
        self.temperature = check_temperature(temperature)
        self.net = net
        self.svc = LogitSVC(penalty, gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, K), float64: the SVC's votes, and fractions that break ties."""
        return self.svc(self.net(x))

    def attack_view(self) -> nn.Module:
        """The same with soft votes: those of `forward` are whole, and have no gradient."""
        return _SoftCorrector(self)

    def undefended(self) -> nn.Module:
        """The net without the corrector."""
        return self.net

    def fit(
        self, *, clean: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor] | None = None, seed: int = 0
    ) -> None:
        """Fits the SVC on FGSM examples of clean training images.

        Args:
            clean: images (N, ...) in [0, 1] that the net was trained on, and their classes (N,).
            held_out: not used; every defense is offered the validation split.
            seed: of which images are used.

        Raises:
            ValueError: the net is wrong on most of the clean images (they look adversarial), a class without examples.
        """
        self.svc.fit(*fgsm_logits(self.net, clean, self.eps, self.examples, seed))


class _SoftCorrector(nn.Module):
    def __init__(self, model: LogitCorrector) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.svc.soft(self.model.net(x), self.model.temperature)


def fgsm_logits(
    net: nn.Module, clean: tuple[Tensor, Tensor], eps: Sequence[float], examples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of FGSM examples of some clean images at every budget, and the true classes (N,), on the CPU.

    Every image is attacked, those that the net misclassifies anyway as well, and kept whether or not it is fooled.
    """
    x, y = some(clean, examples, seed)
    check_clean(net, (x, y), "LogitCorrector")
    logits, labels = [], []
    with held_still(net) as device:
        for part, label in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            part, label = part.to(device), label.to(device)
            for budget in eps:
                attack = FGSM(eps=budget)
                adversarial = attack.maximise(net, part, Criterion(label).log_odds)
                logits.append(net(adversarial).float().cpu())
                labels.append(label.cpu())
    return torch.cat(logits), torch.cat(labels)


def check_crafting(eps: Sequence[float], examples: int) -> tuple[tuple[float, ...], int]:
    """Returns the budgets and the number of images of `fgsm_logits` if they are usable, else raises ValueError."""
    if not eps:
        raise ValueError("eps must give at least one budget for the FGSM examples, got none")
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
        raise ValueError(f"examples must be a whole number of at least 1, got {examples!r}")
    return tuple(check_eps(budget) for budget in eps), examples


def check_temperature(temperature: float) -> float:
    """Returns `temperature` if it can soften a decision, else raises ValueError."""
    if isinstance(temperature, bool) or not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature must be positive and finite, got {temperature!r}; the hard decision is forward's"
        )
    return float(temperature)
