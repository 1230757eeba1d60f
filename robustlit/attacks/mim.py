"""MIM: BIM along an accumulated gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent
from robustlit.checks import check_count, check_step_size


@dataclass(frozen=True)
class MIM(GradientAscent):
    """Momentum iterative method: steps along velocity = decay * velocity + gradient / |gradient|_1.

    Dong, Liao, Pang, Su, Zhu, Hu, Li: Boosting adversarial attacks with momentum, 2018, arXiv:1710.06081. The L1 norm
    is each example's own; a zero gradient adds nothing.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        steps: number of gradient steps.
        step_size: in pixel units; None means eps / steps. Scales with eps when a call gives another budget.
        decay: how much of the velocity a step keeps, the paper's mu; 0 is `BIM`.

    Raises:
        ValueError: eps, steps, step_size or decay out of range, unknown norm.
    """

    name: ClassVar[str] = "mim"
    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        check_step_size(self.step_size, self.norm)
        if (
            isinstance(self.decay, bool)
            or not isinstance(self.decay, Real)
            or not math.isfinite(self.decay)
            or self.decay < 0
        ):
            raise ValueError(f"decay must be at least 0 and finite, got {self.decay!r}; the paper's is 1")

    @property
    def _steps(self) -> int:
        return self.steps

    @property
    def _step_over_eps(self) -> float:
        return 1 / self.steps if self.step_size is None else self.step_size / self.eps

    @property
    def _decay(self) -> float:
        return self.decay
