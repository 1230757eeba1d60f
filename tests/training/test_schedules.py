"""Piecewise learning rates, against the numbers of Rice 2020."""

import pytest
import torch
from torch.optim import SGD

from robustlit.training import piecewise


def rates(total: int, **arguments) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = piecewise(optimizer, total, **arguments)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_falls_at_the_shares_of_the_training() -> None:
    found = rates(200)
    assert found[:100] == pytest.approx([0.1] * 100)
    assert found[100:150] == pytest.approx([0.01] * 50)
    assert found[150:] == pytest.approx([0.001] * 50)
    assert rates(10, milestones=[0.9], factor=0.5) == pytest.approx([0.1] * 9 + [0.05])


def test_its_state_says_how_long_it_is() -> None:
    schedule = piecewise(SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 40)
    assert schedule.state_dict()["total_steps"] == 40  # for a run that is resumed


@pytest.mark.parametrize("arguments", [{"milestones": [0.0]}, {"milestones": [30]}, {"factor": 0}])
def test_values_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"milestones must be a share|factor must be positive"):
        piecewise(SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 40, **arguments)
