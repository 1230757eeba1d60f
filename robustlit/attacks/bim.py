"""BIM: FGSM in small steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent


@dataclass(frozen=True, repr=False)
class BIM(GradientAscent):
    """Basic iterative method: steps of size eps / steps from the image, clipped to the ball around it and to the box.

    Kurakin, Goodfellow, Bengio: Adversarial examples in the physical world, 2017, arXiv:1607.02533.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        steps: Number of gradient steps.
        step_size: In pixel units; None means eps / steps. Scales with eps when a call gives another budget.
        relative_step_size: Step length as a multiple of eps, instead of `step_size`.

    Raises:
        ValueError: eps, steps or a step size out of range, both step sizes given, unknown norm.
    """

    name: ClassVar[str] = "bim"
    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
