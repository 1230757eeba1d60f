"""A model that only looks robust fails the check of its kind; an honest one fails none of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import cheats
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import EOT, FGSM, PGD, BudgetAttack
from robustlit.data import load_mnist
from robustlit.defenses import BitDepth, JumpReLUDefense
from robustlit.evaluation import evaluate
from robustlit.results import FAIL, INCONCLUSIVE, PASS, Check, Evaluation
from robustlit.verdict.checks import CHECKS
from robustlit.verdict.effort import FULL, Price, affordable, least
from robustlit.verdict.moved import fresh_copy
from robustlit.verdict.spec import FEWEST

judge = import_module("robustlit.verdict.judge")  # the name of the package's function hides the module

Data = tuple[Tensor, Tensor]
Judged = Callable[..., dict[int, Check]]
ATTACK = PGD(eps=0.1, steps=5)
NEW = {4, 10, 12, 15, *range(21, 28)}


@pytest.fixture
def judged(digits: Data, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Make some checks of a verdict on a model."""

    def make(
        numbers: set[int], model: nn.Module, attack: BudgetAttack = ATTACK, data: Data | None = None, n: int = 24,
        profile: str = "full", grid: Any = None,
    ) -> dict[int, Check]:  # fmt: skip
        monkeypatch.setattr(judge, "CHECKS", [spec for spec in CHECKS if spec.number in numbers])
        data = data or (digits[0][:n], digits[1][:n])
        found = judge.verdict(evaluate(model, data, [attack], grid=grid), model, data, [attack], profile=profile)
        return {check.number: check for check in found.checks}

    return make


def votes(net: nn.Module) -> nn.Module:
    nets = [copy.deepcopy(net) for _ in range(3)]
    draws = torch.Generator().manual_seed(0)
    for each in nets:
        for weights in each.parameters():
            weights.data += 0.2 * weights.data.std(correction=0) * torch.randn(weights.shape, generator=draws)
    return cheats.Votes(nets).eval()


def informed(elsewhere: bool) -> Callable[[nn.Module], nn.Module]:
    images, labels = load_mnist()[2:]
    return lambda net: cheats.Informed(net, images[:24].float() / 255, labels[:24], elsewhere)


@pytest.mark.parametrize(
    ("number", "cheat"),
    [
        (12, cheats.WrongView),
        (15, cheats.Cloaked),
        pytest.param(21, cheats.Remembering, marks=pytest.mark.slow),
        (21, cheats.RememberingGraphs),
        (22, informed(False)),
        (22, informed(True)),
        (23, cheats.Plateau),
        (23, cheats.NaNInside),
        (23, cheats.Overflowing),
        (24, cheats.WrongView),
        (24, cheats.Mirrored),
        (24, cheats.Stopped),
        (24, cheats.Shattered),
        (25, cheats.Constant),
        (25, votes),
    ],
)
def test_a_cheat_fails_the_check_of_its_kind(
    number: int, cheat: Callable[[nn.Module], nn.Module], net: nn.Module, judged: Judged
) -> None:
    n = 10 if number in (15, 21) else 24
    (check,) = judged({number}, cheat(net), n=n).values()
    assert check.status == FAIL, check
    assert ": " in check.finding  # and says what to try


def steep(net: nn.Module) -> nn.Module:
    return EOT(cheats.Dropping(net), 5)


def test_an_attack_view_that_nothing_misleads_fails(net: nn.Module, digits: Data, judged: Judged) -> None:
    x, y = digits[0][:24], digits[1][:24]
    right = net(x).argmax(1) == y
    data = x[right], y[right]
    check = judged({12}, cheats.NothingMisleads(net, data[1]), data=data)[12]
    assert check.status == FAIL
    assert "nothing misleads the attack view, not even linf 1" in check.finding


@pytest.mark.parametrize(
    "honest",
    [
        lambda net: net,
        cheats.rounding,
        pytest.param(lambda net: BitDepth(net, 3), marks=pytest.mark.slow),
        pytest.param(lambda net: JumpReLUDefense(net, 0.1), marks=pytest.mark.slow),
        pytest.param(steep, marks=pytest.mark.slow),
    ],
    ids=["plain", "rounding", "bit_depth", "jumprelu", "dropout"],
)
def test_an_honest_net_raises_no_alarm(
    honest: Callable[[nn.Module], nn.Module], net: nn.Module, judged: Judged
) -> None:
    found = judged(NEW, honest(net))
    assert not [check for check in found.values() if check.status == FAIL]
    assert all(found[number].status == PASS for number in (21, 22, 23, 24, 25, 26, 27)), found


def trained(net: nn.Module, x: Tensor, y: Tensor, eps: float = 0.0) -> nn.Module:
    """Train for an epoch, at eps by one step from a random start."""
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for rows in torch.arange(len(x)).split(100):
        z = x[rows]
        if eps:
            z = (z + eps * (2 * torch.rand_like(z) - 1)).clamp(0, 1).requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(z), y[rows]), z)
            z = (z + 1.25 * eps * gradient.sign()).clamp(x[rows] - eps, x[rows] + eps).clamp(0, 1).detach()
        optimizer.zero_grad()
        F.cross_entropy(net(z), y[rows]).backward()
        optimizer.step()
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch_norm", "adversarial", "two_classes", "32_pixels", "linear"])
@pytest.mark.parametrize("profile", ["quick", "full"])
def test_other_honest_nets_raise_no_alarm(kind: str, profile: str, digits: Data, judged: Judged) -> None:
    torch.manual_seed(0)
    images, labels, _, _ = load_mnist()
    x, y, data = images[:6000].float() / 255, labels[:6000], (digits[0][:60], digits[1][:60])
    net: nn.Module = cheats.Normalised()
    if kind == "two_classes":
        net, y, data = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 2)), y % 2, (
            data[0], data[1] % 2,
        )  # fmt: skip
    elif kind == "32_pixels":
        x, data = F.pad(x, (2, 2, 2, 2)), (F.pad(data[0], (2, 2, 2, 2)), data[1])
        net = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(2048, 10))
    elif kind == "linear":
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    attack = PGD(eps=0.05, steps=20)
    net = trained(net, x, y, eps=attack.eps if kind == "adversarial" else 0.0)
    found = judged({1, 2, 3, 5, 8, 9, 16, 18, *NEW}, net, attack, data, profile=profile)
    assert not [check for check in found.values() if check.status == FAIL]


def test_more_examples_of_random_models_are_paid_for() -> None:
    price = Price(attack=2 * 40 * 20 + 40, steps=40, draws=20, votes=20, has_view=False, minimal_in_l2=False,
                  norm="linf")  # fmt: skip
    for n in (100, 1000):
        assert min(affordable(0.8 * least(price, n), CHECKS, price)[s] for s in ("wide", "few", "short")) >= FEWEST
    once = replace(price, draws=1, votes=1)
    assert least(price, 100) == 20 * least(once, 100)


def test_a_quick_verdict_looks_at_no_more_examples_than_a_full_one() -> None:
    price = Price(attack=800, steps=0, draws=1, votes=1, has_view=False, minimal_in_l2=True, norm="linf")
    sizes = affordable(1e9, CHECKS, price)
    assert sizes == FULL | {"rows": 10}


def test_a_smaller_budget_is_attacked_though_the_table_cannot_rise(judged: Judged) -> None:
    """A model that errs in a shell of the ball alone, which one large step leaps over."""

    class Shell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            rise = x.flatten(1).mean(1) - 0.5
            score = 2 * ((rise > 0.1) & (rise < 0.15)).float() - 1 + (rise * self.w - (rise * self.w).detach())
            return torch.stack([torch.zeros_like(score), score], 1)

    data = 0.5 + 0.02 * (torch.rand(60, 1, 6, 6) - 0.5), torch.zeros(60, dtype=torch.long)
    for grid in (None, {"linf": [0.05, 0.12, 0.2, 0.3]}):
        check = judged({4}, Shell(), FGSM(eps=0.3), data, profile="quick", grid=grid)[4]
        assert check.status == FAIL
        assert "within 0.15: " in check.finding


def test_rows_are_attacked_again(net: nn.Module, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "CHECKS", [spec for spec in CHECKS if spec.number == 26])
    data, attacks = (digits[0][:60], digits[1][:60]), [PGD(eps=0.1, steps=10)]
    true = evaluate(net, data, attacks, grid={"linf": [0.05, 0.2]}, seed=3)

    def check(evaluation: Evaluation, given: Any = attacks, profile: str = "quick") -> Check:
        (found,) = judge.verdict(evaluation, net, data, given, eps=0.1, profile=profile).checks
        return found

    assert check(true, profile="full").status == PASS
    assert check(true).status == PASS
    frame = true.to_frame()
    broken = frame[frame["success"] & frame["clean"] & (frame["eps"] < 0.15)]["index"].unique()[:3]
    frame.loc[frame["index"].isin(broken), "success"] = False
    changed = check(Evaluation(frame, true.meta))
    assert changed.status == FAIL
    assert " 3 of " in changed.finding
    assert check(Evaluation(true.to_frame(), true.meta | {"seed": 4}), profile="full").status in (FAIL, PASS)
    assert check(true, None).status == INCONCLUSIVE
    assert check(Evaluation(true.to_frame(), {})).status == INCONCLUSIVE


def test_copies_of_images_are_counted(net: nn.Module, digits: Data, judged: Judged) -> None:
    few = digits[0][:3].repeat(20, 1, 1, 1), digits[1][:3].repeat(20)
    noisy = (few[0] + 0.002 * torch.rand(few[0].shape)).clamp(max=1), few[1]
    check = judged({27}, net, PGD(eps=0.02), noisy)[27]  # the table itself counts exact copies once
    assert check.status == FAIL
    assert "57 of 60" in check.finding
    assert judged({27}, net, n=200)[27].figure == 0
    none_left = judged({27}, net, PGD(eps=0.5, steps=40), noisy)[27]
    assert none_left.status == PASS, none_left  # a figure of 0 % cannot be too high


class LayerError(Exception):
    """Any error of a model's own code."""


@pytest.mark.parametrize("error", [LayerError("no  such\nlayer"), ValueError("x"), KeyError("x"), AssertionError()])
def test_a_check_that_ends_in_an_error_is_undecided(
    error: Exception, net: nn.Module, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object) -> Check:
        raise error

    failing = [replace(spec, look=look, reads=None) if spec.number == 9 else spec for spec in CHECKS[8:10]]
    monkeypatch.setattr(judge, "CHECKS", failing)
    data = digits[0][:10], digits[1][:10]
    evaluation = evaluate(net, data, [ATTACK])
    ninth, tenth = judge.verdict(evaluation, net, data, [ATTACK], profile="full").checks
    assert (ninth.status, tenth.status) == (INCONCLUSIVE, PASS)
    assert f"the check ended in {type(error).__name__}" in ninth.finding
    assert "\n" not in ninth.finding

    def interrupted(*_: object) -> Check:
        raise KeyboardInterrupt

    monkeypatch.setattr(judge, "CHECKS", [replace(failing[0], look=interrupted)])
    with pytest.raises(KeyboardInterrupt):
        judge.verdict(evaluation, net, data, [ATTACK], profile="full")


def test_a_view_without_gradients_leaves_a_verdict(
    net: nn.Module, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    undecided, data = {12, 19, 21, 23, 24, 25}, (digits[0][:8], digits[1][:8])
    monkeypatch.setattr(judge, "CHECKS", [spec for spec in CHECKS if spec.number in {9, *undecided}])
    evaluation = evaluate(net, data, [ATTACK])
    found = judge.verdict(evaluation, cheats.BlindView(net), data, [ATTACK], profile="full")
    by_number = {check.number: check for check in found.checks}
    assert by_number[9].status == FAIL
    assert {by_number[number].status for number in undecided} == {INCONCLUSIVE}


def test_a_copy_holds_what_the_model_held() -> None:
    model = cheats.RememberingGraphs(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with torch.enable_grad():
        model(torch.rand(3, 1, 2, 2))
    again: Any = fresh_copy(model)
    assert len(again.memory) == len(model.memory) == 3
    assert torch.equal(again.memory[0][1], model.memory[0][1])
    again(torch.rand(1, 1, 2, 2) - 5)
    assert (len(again.memory), len(model.memory)) == (4, 3)
