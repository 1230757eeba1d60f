"""How often AdvGAN's generator fools its victim: what its training logs at validation and test."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustlit.attacks.losses import Criterion
from robustlit.classifier import predicted
from robustlit.models.generator import perturb
from robustlit.threat import distance
from robustlit.training.substitute import Oracle, agrees


def goal_of(y: Tensor, target: int | None) -> Criterion:
    """Return the generator's criterion for true classes (B,): any other class, or the class `target`."""
    return Criterion(y, None if target is None else torch.full_like(y, target))


@dataclass
class Fooling:
    """Mean over the examples of an epoch of what a generator does to a victim, crafted as `AdvGAN` would.

    Args:
        oracle: The victim; each image it is shown is counted there.
        target: The class to reach; None: any but the true one.
    """

    oracle: Oracle
    target: int | None
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, x: Tensor, y: Tensor, generator: nn.Module, eps: float, substitute: nn.Module | None = None) -> None:
        """Attack a batch of images (B, C, H, W) and classes (B,); `substitute` is compared with the victim."""
        clean = self.oracle(x)
        right = predicted(clean) == y
        found = {"accuracy": right, "robust_accuracy": right.clone()}
        rows = torch.nonzero(right if self.target is None else right & (y != self.target)).squeeze(1)
        with torch.autocast(x.device.type, enabled=False):  # in float32, as attacks are evaluated
            x_adv = perturb(generator, x[rows], eps)
        if len(rows):
            answers = self.oracle(x_adv)
            found["robust_accuracy"][rows] = predicted(answers) == y[rows]
            found["fooling_rate"] = goal_of(y[rows], self.target).reached(answers)
            found["l2"] = distance(x_adv, x[rows], "l2")
        if substitute is not None:
            found["agreement"] = agrees(substitute, clean, x)
            if len(rows):
                found["agreement_generated"] = agrees(substitute, answers, x_adv)
        for name, values in found.items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + values.double().sum().cpu()
            self._counts[name] = self._counts.get(name, 0) + len(values)

    def shares(self) -> dict[str, float]:
        """Return the means by name; NaN for what no example had (a fooling rate where the victim is always wrong)."""
        names = {*self._sums, "fooling_rate", "l2"}
        return {n: float(self._sums[n]) / self._counts[n] if self._counts.get(n) else math.nan for n in sorted(names)}
