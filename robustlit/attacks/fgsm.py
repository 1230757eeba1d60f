"""FGSM: one step of steepest ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent
from robustlit.checks import check_step_size


@dataclass(frozen=True)
class FGSM(GradientAscent):
    """Fast gradient sign method: x + eps sign(gradient); in L2, x + eps gradient / |gradient|.

    Goodfellow, Shlens, Szegedy: Explaining and harnessing adversarial examples, 2015, arXiv:1412.6572. With
    `random_start=True` and `step_size` 1.25 eps it is the training attack of Wong, Rice, Kolter: Fast is better than
    free, 2020, arXiv:2001.03994.

    Args:
        eps: budget in pixel units.
        norm: "linf" or "l2".
        random_start: start at a point drawn from the ball instead of the image.
        step_size: length of the step in pixel units; None means eps. Scales with eps when a call gives another budget.
        start_in_box: False lets a random start in training lie outside [0, 1], as Wong's code does; the result does
            not. Cut to the box, a black pixel starts at 0 half of the time, and a step of 1.25 eps ends at the
            surface of the ball wherever it started: on MNIST that overfits catastrophically at once.

    Raises:
        ValueError: eps or step_size out of range, unknown norm.
    """

    name: ClassVar[str] = "fgsm"
    random_start: bool = False
    step_size: float | None = None
    start_in_box: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step_size(self.step_size, self.norm)

    @property
    def _steps(self) -> int:
        return 1

    @property
    def _step_over_eps(self) -> float:
        return 1.0 if self.step_size is None else self.step_size / self.eps

    @property
    def _random_start(self) -> bool:
        return self.random_start

    @property
    def _start_in_box(self) -> bool:
        return self.start_in_box
