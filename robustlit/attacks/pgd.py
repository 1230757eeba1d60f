"""PGD: projected gradient ascent from random points of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent


@dataclass(frozen=True, repr=False)
class PGD(GradientAscent):
    """Projected gradient descent on the negative loss, with random starts.

    Madry, Makelov, Schmidt, Tsipras, Vladu: Towards deep learning models resistant to adversarial attacks, 2018,
    arXiv:1706.06083. Their MNIST attack is `PGD(eps=0.3, steps=40, step_size=0.01)`.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        steps: Number of gradient steps.
        step_size: In pixel units; None means 2.5 eps / steps, enough to reach any point of the ball from any other
            (Madry's rule). Scales with eps when a call gives another budget.
        random_start: Start at a point drawn uniformly from the ball instead of the image.
        restarts: Number of random starts for an unbroken example; more than 1 needs `random_start`.
        relative_step_size: Step length as a multiple of eps, instead of `step_size`.

    Raises:
        ValueError: An argument out of range, both step sizes, unknown norm, restarts without random starts.
    """

    name: ClassVar[str] = "pgd"
    path: ClassVar[float] = 2.5
    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    relative_step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts > 1 and not self.random_start:
            rule = "needs random_start=True: from the same point every restart is the same run"
            raise ValueError(f"restarts={self.restarts} {rule}")
