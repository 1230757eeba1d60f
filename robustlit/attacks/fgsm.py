"""FGSM: one step of steepest ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustlit.attacks.ascent import GradientAscent


@dataclass(frozen=True, repr=False)
class FGSM(GradientAscent):
    """Fast gradient sign method: x + eps sign(gradient); in L2, x + eps gradient / |gradient|.

    Goodfellow, Shlens, Szegedy: Explaining and harnessing adversarial examples, 2015, arXiv:1412.6572. With
    `random_start=True` and `relative_step_size=1.25` it is the training attack of Wong, Rice, Kolter: Fast is better
    than free, 2020, arXiv:2001.03994.

    Args:
        eps: Budget in pixel units.
        norm: "linf" or "l2".
        random_start: Start at a point drawn from the ball instead of the image.
        step_size: Length of the step in pixel units; None means eps. Scales with eps when a call gives another budget.
        start_in_box: False lets a random start in training lie outside [0, 1], as Wong's code does; the result does
            not. Cut to the box, a black pixel starts at 0 half of the time, and a step of 1.25 eps ends at the
            surface of the ball from every start: on MNIST that overfits catastrophically at once.
        relative_step_size: Length of the step as a multiple of eps, instead of `step_size`.

    Raises:
        ValueError: eps or a step size out of range, both step sizes given, unknown norm.
    """

    name: ClassVar[str] = "fgsm"
    random_start: bool = False
    step_size: float | None = None
    start_in_box: bool = True
    relative_step_size: float | None = None
