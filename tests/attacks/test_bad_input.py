"""What attacks are given by mistake, and how they answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, MIM, PGD, Attack, BudgetAttack
from robustlit.attacks.apgd import APGD
from robustlit.attacks.draws import Draws
from robustlit.attacks.eot import EOT
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim

ATTACKS = [FGSM(0.1), BIM(0.1, steps=3), PGD(0.1, steps=3), MIM(0.1, steps=3), PGD(1.5, norm="l2", steps=3)]
every = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.name}-{attack.norm}")


@dataclass(frozen=True)
class Fixed(Attack):
    """Returns what it was told to, so that what surrounds an attack can be seen by itself."""

    name: ClassVar[str] = "fixed"
    answer: Callable[[Victim, Tensor, Criterion, Tensor], Tensor] = lambda victim, x, criterion, rows: 1 - x

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        return self.answer(victim, x, criterion, rows)


@dataclass(frozen=True)
class LeavesOnly(Fixed):
    name: ClassVar[str] = "leaves_only"
    targeted: ClassVar[bool] = False


@dataclass(frozen=True)
class ReachesOnly(Fixed):
    name: ClassVar[str] = "reaches_only"
    untargeted: ClassVar[bool] = False
    norms: ClassVar[tuple[str, ...]] = ("l0", "l2")
    norm: str = "l0"


class Linear(nn.Module):
    """Two, three or more classes; the first leads everywhere within 0.05 of a grey image."""

    def __init__(self, classes: int, lead: float = 0.4) -> None:
        super().__init__()
        weight = torch.randn(classes, 16)
        self.weight = nn.Parameter(weight - weight[:1])
        self.register_buffer("lead", torch.tensor([lead] + [0.0] * (classes - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + self.lead


GREY, FIRST = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)


def test_a_class_asked_of_an_attack_that_reaches_none() -> None:
    with pytest.raises(ValueError, match=r"LeavesOnly is defined for leaving the true class only: leave target out"):
        LeavesOnly()(Linear(3), GREY, FIRST, target=FIRST + 1)
    assert LeavesOnly().run(Linear(3), GREY, FIRST).distance.tolist() == [0.0] * 4  # 1 - 0.5


def test_no_class_for_an_attack_that_needs_one() -> None:
    with pytest.raises(ValueError, match=r"ReachesOnly needs the class to reach, one per example: target=tensor"):
        ReachesOnly()(Linear(3), GREY, FIRST)
    ReachesOnly()(Linear(3), GREY, FIRST, target=FIRST + 1)
    with pytest.raises(ValueError, match=r"norm must be one of l0, l2 for ReachesOnly, got 'linf'"):
        ReachesOnly(norm="linf")


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("settings", [{"loss": "dlr"}, {"loss": "dlr", "targets": 9}, {"targets": 9}], ids=str)
def test_a_ratio_of_logits_that_there_are_too_few_of(classes: int, targeted: bool, settings: dict) -> None:
    model, attack = Linear(classes), APGD(eps=0.3, steps=10, **settings)
    result = attack.run(model, GREY, FIRST, target=FIRST + 1 if targeted else None, seed=0)
    assert result.x_adv.isfinite().all()
    assert result.success.all()
    criterion = Criterion(FIRST, FIRST + 1 if targeted else None)
    logits = torch.randn(4, classes, dtype=torch.float64)
    if classes < (4 if targeted else 3):
        torch.testing.assert_close(criterion.dlr(logits), criterion.margin(logits))
    else:
        torch.testing.assert_close(criterion.dlr(logits * 7 + 3), criterion.dlr(logits))


@every
def test_probabilities_are_told(attack: BudgetAttack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], digits[1][:6]
    for model in (nn.Sequential(net, nn.Softmax(1)), nn.Sequential(net, nn.Softmax(1), Half())):
        with pytest.warns(UserWarning, match=r"Sequential returns probabilities .* look weaker .* without the softmax"):
            attack(model, x, y, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for model in (net, nn.Sequential(net, nn.LogSoftmax(1)), nn.Sequential(net, nn.Sigmoid()), EOT(net, 1)):
            attack(model, x, y, seed=0)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


def test_probabilities_do_look_stronger(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    # What the warning says is so: where the softmax saturates, it hides the way.
    class Confident(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (net(x) * 100).softmax(1)

    x, y = digits[0][:100], digits[1][:100]
    attack = PGD(eps=0.1, steps=5, random_start=False)
    plain = attack.run(net, x, y).success.float().mean()
    with pytest.warns(UserWarning, match="probabilities"):
        masked = attack.run(Confident(), x, y).success.float().mean()
    assert masked < plain - 0.1


@every
def test_a_misclassified_example_costs_two_passes(attack: BudgetAttack) -> None:
    model, y = Linear(3), torch.tensor([0, 1, 0, 2])
    for target in (None, torch.tensor([1, 0, 2, 0])):
        result = attack.run(model, GREY, y, target=target, seed=0)
        assert result.success[[1, 3]].all()
        assert torch.equal(result.x_adv[[1, 3]], GREY[[1, 3]])
        assert result.distance[[1, 3]].tolist() == [0.0, 0.0]
        assert result.prediction[[1, 3]].tolist() == [0, 0]
        assert result.forwards[[1, 3]].tolist() == [2, 2]
        assert result.backwards[[1, 3]].tolist() == [0, 0]
        assert (result.backwards[[0, 2]] > 0).all()


def test_only_those_still_to_break_reach_the_search() -> None:
    seen = []

    def answer(victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor) -> Tensor:
        seen.append((x, criterion.label.tolist(), rows.tolist()))
        return (x + 0.5).requires_grad_()  # as an optimiser's variable would be

    x = torch.linspace(0.4, 0.5, 5).view(5, 1, 1, 1).expand(5, 1, 4, 4).clone()
    result = Fixed(answer).run(Linear(3), x, torch.tensor([0, 1, 0, 2, 0]))
    ((given, labels, rows),) = seen
    assert torch.equal(given, x[[0, 2, 4]])
    assert (labels, rows) == ([0, 0, 0], [0, 2, 4])
    assert not result.x_adv.requires_grad
    torch.testing.assert_close(result.distance, torch.tensor([0.5, 0, 0.5, 0, 0.5]))
    seen.clear()
    assert Fixed(answer).run(Linear(3), GREY, FIRST + 1).success.all()
    assert not seen


@every
def test_an_empty_batch(attack: BudgetAttack) -> None:
    with pytest.raises(ValueError, match="the batch is empty: there is no example to attack"):
        attack(Linear(3), GREY[:0], FIRST[:0])


@every
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32, torch.bool, torch.float16, torch.bfloat16])
def test_images_of_another_type(attack: BudgetAttack, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"images must be float32 in \[0, 1\], got {dtype}; for uint8 use x.float"):
        attack(Linear(3), GREY.to(dtype), FIRST)


@every
def test_a_model_that_never_changes_its_mind(attack: BudgetAttack) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[2.0, 1.0, 0.0]]) + 0 * x.flatten(1).sum(1, keepdim=True)

    with pytest.warns(UserWarning, match="gradient of Constant is zero at every pixel"):
        result = attack.run(Constant(), GREY, FIRST, seed=0)
    assert not result.success.any()
    assert result.x_adv.isfinite().all()
    assert (result.distance <= attack.eps + 1e-6).all()
    assert result.prediction.tolist() == [0] * 4
    assert attack.run(Constant(), GREY, FIRST + 1).success.all()  # wrong from the beginning


class Fails(nn.Module):
    """Logits that are no numbers, for the image numbered `sick` by its last pixel, from its `after`-th pass on."""

    def __init__(self, inner: nn.Module, sick: int, after: int, value: float) -> None:
        super().__init__()
        self.inner, self.sick, self.after, self.value = inner, sick, after, value
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        who = x.detach()[:, 0, 3, 3] > 0.9
        self.passes += int(who.sum())
        mask = torch.ones_like(x)
        mask[:, 0, 3, 3] = 0.0
        logits = self.inner(x * mask)
        return logits.masked_fill(who.unsqueeze(1), self.value) if self.passes > self.after else logits


@every
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_stop_being_numbers(attack: BudgetAttack, after: int, value: float) -> None:
    if attack.name == "fgsm" and after > 1:
        pytest.skip("it takes two passes")
    inner = Linear(3, lead=5.0)  # out of reach, so that all take every step
    x = GREY.double()
    x[:, 0, 3, 3] = torch.tensor([0.1, 0.1, 1.0, 0.1], dtype=torch.float64)
    model = Fails(inner.double(), 2, after, value)
    options = {"eps": torch.full((4,), min(attack.eps, 0.05), dtype=torch.float64), "index": torch.arange(4), "seed": 0}
    said = rf"1 of 4 examples got logits that are not finite during {attack.name}; such points count for no success"
    with pytest.warns(UserWarning, match=said):
        result = attack.run(model, x, FIRST, **options)
    assert result.finite.tolist() == [True, True, False, True]
    assert not result.success.any()
    assert result.x_adv.isfinite().all()
    keep = torch.tensor([0, 1, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        options = {name: value[keep] if isinstance(value, Tensor) else value for name, value in options.items()}
        alone = attack.run(Fails(inner, 2, 99, 0.0), x[keep], FIRST[keep], **options)
    torch.testing.assert_close(result.x_adv[keep], alone.x_adv, rtol=0, atol=1e-9)
    assert torch.equal(result.backwards[keep], alone.backwards)


def test_a_bad_draw_is_noted_even_where_an_example_stands_in_several_rows() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[float("nan"), 0.0], [1.0, 0.0], [1.0, 0.0]])[: len(x)]

    with Victim(Odd(), GREY) as victim:
        victim.logits(GREY[:3], torch.tensor([1, 1, 3]))
        assert victim.finite.tolist() == [True, False, True, True]
        assert victim.forwards.tolist() == [0, 2, 0, 1]
        victim.logits(GREY[:2], torch.tensor([1, 0]))
        assert victim.finite.tolist() == [True, False, True, True]


def test_large_logits_are_finite() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), 3e38)  # their sum is not

    with Victim(Large(), GREY) as victim:
        victim.logits(GREY)
        assert victim.finite.all()
