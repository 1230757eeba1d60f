"""Learning-rate schedules of the field that PyTorch gives in steps, not in shares of the training."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from robustlit.checks import check_positive, check_share


def piecewise(
    optimizer: Optimizer, total_steps: int, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> LambdaLR:
    """Return a schedule that multiplies the learning rate by `factor` at each milestone.

    Args:
        optimizer: Its learning rate is the first one.
        total_steps: Of the training; a recipe leaves it out, and the trainer fills it in.
        milestones: Shares of the training in (0, 1); a half and three quarters as Rice, Wong, Kolter, 2020,
            arXiv:2002.11569 (epochs 100 and 150 of 200).
        factor: Positive; .1 as theirs.

    Raises:
        ValueError: An argument out of range.
    """
    for share in milestones:
        check_share(share, "milestones", "; each is a share of the training")
    check_positive(factor, "factor", "; .1 divides the rate by ten")
    steps = [round(share * total_steps) for share in milestones]
    schedule = LambdaLR(optimizer, lambda step: factor ** sum(step >= milestone for milestone in steps))
    schedule.total_steps = total_steps  # type: ignore[attr-defined]  # in its state: a resumed run must not outlast it
    return schedule
