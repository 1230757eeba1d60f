"""What surrounds the search of every attack: who is searched for, targets, and warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import APGD, PGD, Attack
from robustlit.attacks.draws import Draws
from robustlit.attacks.eot import EOT
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim


@dataclass(frozen=True)
class Fixed(Attack):
    """Returns a given function of the images, so that what surrounds an attack can be seen by itself."""

    name: ClassVar[str] = "fixed"
    answer: Callable[[Victim, Tensor, Criterion, Tensor], Tensor] = lambda victim, x, criterion, rows: 1 - x

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        return self.answer(victim, x, criterion, rows)


@dataclass(frozen=True)
class UntargetedOnly(Fixed):
    name: ClassVar[str] = "untargeted_only"
    targeted: ClassVar[bool] = False


@dataclass(frozen=True)
class TargetedOnly(Fixed):
    name: ClassVar[str] = "targeted_only"
    untargeted: ClassVar[bool] = False
    norms: ClassVar[tuple[str, ...]] = ("l0", "l2")
    norm: str = "l0"


class Linear(nn.Module):
    """Several classes; the first leads everywhere within 0.05 of a grey image."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        weight = torch.randn(classes, 16)
        self.weight = nn.Parameter(weight - weight[:1])
        self.register_buffer("lead", torch.tensor([0.4] + [0.0] * (classes - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + self.lead


GREY, FIRST = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)


def test_a_target_for_an_attack_that_takes_none() -> None:
    with pytest.raises(ValueError, match=r"UntargetedOnly is defined for leaving the true class only: leave target"):
        UntargetedOnly()(Linear(), GREY, FIRST, target=FIRST + 1)
    assert UntargetedOnly().run(Linear(), GREY, FIRST).distance.tolist() == [0.0] * 4  # 1 - 0.5


def test_no_target_for_an_attack_that_needs_one() -> None:
    with pytest.raises(ValueError, match=r"TargetedOnly needs the class to reach, one per example: target=tensor"):
        TargetedOnly()(Linear(), GREY, FIRST)
    TargetedOnly()(Linear(), GREY, FIRST, target=FIRST + 1)
    with pytest.raises(ValueError, match=r"norm must be one of l0, l2 for TargetedOnly, got 'linf'"):
        TargetedOnly(norm="linf")


def test_only_unbroken_examples_are_searched_for() -> None:
    seen = []

    def answer(victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor) -> Tensor:
        seen.append((x, criterion.label.tolist(), rows.tolist()))
        return (x + 0.5).requires_grad_()  # as an optimiser's variable would be

    x = torch.linspace(0.4, 0.5, 5).view(5, 1, 1, 1).expand(5, 1, 4, 4).clone()
    result = Fixed(answer).run(Linear(), x, torch.tensor([0, 1, 0, 2, 0]))
    ((given, labels, rows),) = seen
    assert torch.equal(given, x[[0, 2, 4]])
    assert (labels, rows) == ([0, 0, 0], [0, 2, 4])
    assert not result.x_adv.requires_grad
    torch.testing.assert_close(result.distance, torch.tensor([0.5, 0, 0.5, 0, 0.5]))
    seen.clear()
    assert Fixed(answer).run(Linear(), GREY, FIRST + 1).success.all()
    assert not seen


def test_probabilities_are_warned_about_and_logits_are_not(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y, attack = digits[0][:6], digits[1][:6], PGD(0.1, steps=2)
    for model in (nn.Sequential(net, nn.Softmax(1)), nn.Sequential(net, nn.Softmax(1), Function(Tensor.bfloat16))):
        with pytest.warns(UserWarning, match=r"Sequential returns probabilities .* look weaker .* without the softmax"):
            attack(model, x, y, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for last in (nn.Identity(), nn.LogSoftmax(1), Function(F.normalize)):
            attack(nn.Sequential(net, last), x, y, seed=0)
        attack(EOT(net, 1), x, y, seed=0)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Tanh()], ids=str)
def test_a_saturated_sigmoid_or_tanh_is_warned_about(
    last: nn.Module, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y, attack = digits[0][:6], digits[1][:6], PGD(0.1, steps=2)
    with pytest.warns(UserWarning, match=r"Sequential returns the outputs of a sigmoid or tanh .* return its input"):
        attack(nn.Sequential(net, last), x, y, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attack(nn.Sequential(net, Function(lambda z: z / 1e3), last), x, y, seed=0)  # does not saturate


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("settings", [{"loss": "dlr"}, {"loss": "dlr", "targets": 9}, {"targets": 9}], ids=str)
def test_few_classes_are_enough(classes: int, settings: dict) -> None:
    for target in (None, FIRST + 1):
        result = APGD(eps=0.3, steps=10, **settings).run(Linear(classes), GREY, FIRST, target=target, seed=0)
        assert result.x_adv.isfinite().all()
        assert result.success.all()
