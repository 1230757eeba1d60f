"""MIM: BIM along an accumulated gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent
from robustlit.checks import check_not_negative


@dataclass(frozen=True, repr=False)
class MIM(GradientAscent):
    """Momentum iterative method: steps along velocity = decay * velocity + gradient / |gradient|_1.

    Dong, Liao, Pang, Su, Zhu, Hu, Li: Boosting adversarial attacks with momentum, 2018, arXiv:1710.06081. The L1 norm
    is each example's own; a zero gradient adds nothing.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        steps: Number of gradient steps.
        step_size: In pixel units; None means eps / steps. Scales with eps when a call gives another budget.
        decay: Share of the velocity that a step keeps, the paper's mu; 0 is `BIM`.
        relative_step_size: Step length as a multiple of eps, instead of `step_size`.

    Raises:
        ValueError: eps, steps, decay or a step size out of range, both step sizes given, unknown norm.
    """

    name: ClassVar[str] = "mim"
    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    relative_step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self.decay, "decay", "; the paper's is 1")
