"""APGD: its losses by hand, its schedule, and and its own step size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import APGD, FGSM
from robustlit.attacks.apgd import _AscentState, _windows
from robustlit.attacks.best import Best
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.threat import Ball, distance

LOGITS = torch.tensor([[4.0, 1.0, 3.0, -2.0], [0.5, 2.0, 1.0, 1.5], [-9.0, -7.0, -8.0, -12.0]])


def test_dlr_is_the_papers_ratio() -> None:
    label = torch.tensor([0, 0, 2])
    # (best other - own) / (first - third)
    expected = torch.tensor([(3 - 4) / (4 - 1), (2 - 0.5) / (2 - 1), (-7 + 8) / (-7 + 9)])
    torch.testing.assert_close(Criterion(label).dlr(LOGITS), expected)
    target = torch.tensor([1, 3, 0])
    # (target - own) / (first - mean of third and fourth)
    expected = torch.tensor([(1 - 4) / (4 + 0.5), (1.5 - 0.5) / (2 - 0.75), (-9 + 8) / (-7 + 10.5)])
    torch.testing.assert_close(Criterion(label, target).dlr(LOGITS), expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_dlr_does_not_see_the_scale_of_the_logits(scale: float) -> None:
    criterion = Criterion(torch.tensor([0, 0, 2]))
    torch.testing.assert_close(criterion.dlr(LOGITS * scale), criterion.dlr(LOGITS), rtol=1e-4, atol=1e-4)


def test_dlr_of_too_few_classes_is_the_margin() -> None:
    two, three = LOGITS[:, :2], LOGITS[:, :3]
    label, target = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1])
    assert torch.equal(Criterion(label).dlr(two), Criterion(label).margin(two))
    assert torch.equal(Criterion(label, target).dlr(two), Criterion(label, target).margin(two))
    assert torch.equal(Criterion(label, target).dlr(three), Criterion(label, target).margin(three))


def test_progress_is_checked_at_the_papers_steps() -> None:
    first = list(itertools.accumulate(itertools.islice(_windows(100), 8)))
    assert first == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(itertools.islice(_windows(3), 4)) == [1, 1, 1, 1]  # never a window of no steps


def _climbers() -> _AscentState:
    x, at = torch.full((3, 4), 0.5), torch.arange(3)
    criterion, ball = Criterion(torch.zeros(3, dtype=torch.int64)), Ball(x, torch.full((3,), 0.4), "linf")
    climbers = _AscentState(at, at, criterion, x, ball, criterion, Draws(0, at))
    _record(climbers, [0, 0, 0])
    return climbers


def _record(climbers: _AscentState, losses: list[float]) -> None:
    robust = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    climbers.record(Best(climbers.z), robust, robust, torch.tensor(losses), torch.ones(3, 4))


def test_a_step_is_halved_where_it_rises_too_seldom() -> None:
    climbers = _climbers()
    # Rises in 4, 3 and 2 of 4 steps; each ends above where it began.
    for losses in ([1, 1, 2], [2, 2, 1], [3, 3, 4], [4, 2.5, 3]):
        climbers.move()
        _record(climbers, losses)
    climbers.halve_where_stalled(0.75)
    torch.testing.assert_close(climbers.size, torch.tensor([0.8, 0.4, 0.4]))
    assert climbers.halved.tolist() == [False, True, True]
    assert torch.equal(climbers.z[1:], climbers.best[1:])  # and goes back to the best point


def test_a_step_is_halved_where_nothing_was_gained_since_it_last_was_not() -> None:
    climbers = _climbers()
    climbers.halved = torch.tensor([False, True, False])
    climbers.loss_at_check = torch.tensor([5.0, 5.0, 0.5])
    for losses in ([1.0, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]):  # rising throughout, but below the old best
        climbers.move()
        _record(climbers, losses)
    climbers.best_loss = torch.tensor([5.0, 5.0, 4.0])
    climbers.halve_where_stalled(0.75)
    assert climbers.halved.tolist() == [True, False, False]


class Peak(nn.Module):
    """The wrong class gains as a pixel nears a value inside the ball: a step that never shrinks jumps over it."""

    def __init__(self, at: Tensor) -> None:
        super().__init__()
        self.register_buffer("at", at)

    def forward(self, x: Tensor) -> Tensor:
        gain = -(x.flatten(1) - self.at).square().sum(1)
        return torch.stack([torch.zeros_like(gain), gain - 1e-3], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_step_shrinks_onto_a_peak(norm: str) -> None:
    x = torch.full((4, 3), 0.5)
    model = Peak(torch.tensor([0.53, 0.47, 0.58]))
    y = torch.zeros(4, dtype=torch.int64)
    found = APGD(eps=0.3, norm=norm, steps=60)(model, x, y, seed=0)
    assert (found - model.at).abs().max() < 0.015
    far = FGSM(eps=0.3, norm=norm)(model, x, y, seed=0)
    assert (far - model.at).abs().max() > 0.1


class Decoy(nn.Module):
    """Class 1 is likeliest among the wrong and can never win; class 2 does, where the other pixels are bright."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, 1:].mean(1), x[:, 0]
        return torch.stack([torch.zeros_like(first), -0.5 + 0.4 * (1 - first) * second, 2 * first - 1.16], 1)


def test_another_target_is_tried_where_the_likeliest_fails() -> None:
    x, y = torch.full((5, 5), 0.3), torch.zeros(5, dtype=torch.int64)
    one = APGD(eps=0.3, loss="margin", targets=1, steps=20).run(Decoy(), x, y, seed=0)
    two = APGD(eps=0.3, loss="margin", targets=2, steps=20).run(Decoy(), x, y, seed=0)
    assert not one.success.any()
    assert two.success.all()
    assert (two.prediction == 2).all()
    many = APGD(eps=0.3, loss="margin", targets=9, steps=20).run(Decoy(), x, y, seed=0)  # there are only two
    assert torch.equal(many.x_adv, two.x_adv)


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_passes_are_as_asked_for(loss: str, norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:12], digits[1][:12]
    result = APGD(eps=1e-3, norm=norm, loss=loss, steps=7, restarts=2).run(net, x, y, seed=0)
    robust = ~result.success
    assert robust.sum() > 5
    assert (result.backwards[robust] == 14).all()
    assert (result.forwards[robust] == 14 + 2 + 2).all()  # the last iterates, the clean image, the result
    assert (distance(result.x_adv, x, norm) <= 1e-3 + 1e-6).all()
