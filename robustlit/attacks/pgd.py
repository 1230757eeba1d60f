"""PGD: projected gradient ascent from random points of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent
from robustlit.checks import check_count, check_step_size


@dataclass(frozen=True)
class PGD(GradientAscent):
    """Projected gradient descent on the negative loss, with random starts.

    Madry, Makelov, Schmidt, Tsipras, Vladu: Towards deep learning models resistant to adversarial attacks, 2018,
    arXiv:1706.06083. Their MNIST attack is `PGD(eps=0.3, steps=40, step_size=0.01)`.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        steps: number of gradient steps.
        step_size: in pixel units; None means 2.5 eps / steps, enough to reach any point of the ball from any other
            (Madry's rule). Scales with eps when a call gives another budget.
        random_start: start at a point drawn uniformly from the ball instead of the image.
        restarts: random starts that an unbroken example is given; more than 1 needs `random_start`.

    Raises:
        ValueError: eps, steps, step_size or restarts out of range, unknown norm, restarts without random starts.
    """

    name: ClassVar[str] = "pgd"
    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        check_count(self.restarts, "restarts")
        check_step_size(self.step_size, self.norm)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts={self.restarts} needs random_start=True: from the same point every restart is the same run"
            )

    @property
    def _steps(self) -> int:
        return self.steps

    @property
    def _step_over_eps(self) -> float:
        return 2.5 / self.steps if self.step_size is None else self.step_size / self.eps

    @property
    def _random_start(self) -> bool:
        return self.random_start

    @property
    def _restarts(self) -> int:
        return self.restarts
