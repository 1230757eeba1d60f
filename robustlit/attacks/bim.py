"""BIM: FGSM in small steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent
from robustlit.checks import check_count, check_step_size


@dataclass(frozen=True)
class BIM(GradientAscent):
    """Basic iterative method: steps of size eps / steps from the image, clipped to the ball around it and to the box.

    Kurakin, Goodfellow, Bengio: Adversarial examples in the physical world, 2017, arXiv:1607.02533.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        steps: number of gradient steps.
        step_size: in pixel units; None means eps / steps. Scales with eps when a call gives another budget.

    Raises:
        ValueError: eps, steps or step_size out of range, unknown norm.
    """

    name: ClassVar[str] = "bim"
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        check_step_size(self.step_size, self.norm)

    @property
    def _steps(self) -> int:
        return self.steps

    @property
    def _step_over_eps(self) -> float:
        return 1 / self.steps if self.step_size is None else self.step_size / self.eps
