"""AutoAttack: the authors' parts and settings, in their order, each on the examples that are left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import APGD, EOT, FAB, AutoAttack, Square, auto_attack
from robustlit.attacks.draws import Draws
from robustlit.attacks.victim import Victim
from robustlit.threat import distance

Parts = list[tuple[Any, int]]  # each part, and how many examples it was given


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The parts that run, with the number of examples that each was given."""
    ran: Parts = []
    for kind in (APGD, auto_attack._TargetedFAB, auto_attack._PacedSquare):
        search = kind._search

        def spy(self: Any, victim: Victim, x: Tensor, *rest: Any, search: Any = search) -> Tensor:
            ran.append((self, len(x)))
            return search(self, victim, x, *rest)

        monkeypatch.setattr(kind, "_search", spy)
    return ran


def constant(x: Tensor) -> Tensor:
    """Ten classes: always the first, though there are gradients."""
    return x.flatten(1)[:, :10] * 0.1 + 5 * nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10)


def test_the_settings_are_the_authors(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    monkeypatch.undo()
    first, second, third, last = AutoAttack(eps=0.1, norm="l2")._parts()
    assert first == APGD(eps=0.1, norm="l2", loss="ce", steps=100, restarts=1)
    assert second == APGD(eps=0.1, norm="l2", loss="dlr", steps=100, restarts=1, targets=9)
    assert isinstance(third, FAB)
    assert (third.steps, third.restarts, third.norm, third.alpha_max, third.eta, third.beta) == (
        100, 1, "l2", 0.1, 1.05, 0.9,
    )  # fmt: skip
    assert isinstance(last, Square)
    assert (last.queries, last.patch, last.restarts, last.pace) == (5000, 0.8, 1, 10_000)
    assert auto_attack._TARGETS == 9


def test_each_part_gets_the_examples_that_are_left(parts: Parts, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    result = AutoAttack(eps=0.05).run(net, x, y, seed=0)
    assert [type(part).__name__ for part, _ in parts] == ["APGD", "APGD", "_TargetedFAB", "_PacedSquare"]
    left = [count for _, count in parts]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1] >= int((~result.success).sum()) > 0
    assert (distance(result.x_adv, x, "linf") <= 0.05 + 1e-6).all()


def test_every_part_gets_the_rows_and_budgets_of_its_examples_and_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.full((5, 1, 2, 2), 0.4)
    x[0] = 0.7  # misclassified: no part gets it
    budgets, given = torch.tensor([0.5, 0.2, 0.25, 0.3, 0.35]), []

    class Part:
        """Breaks one example, the one of its own number."""

        expected_passes = 1.0

        def __init__(self, row: int) -> None:
            self.row = row

        def _search(self, victim: Victim, x: Tensor, criterion: Any, rows: Tensor, draws: Any, eps: Tensor) -> Tensor:
            given.append((rows.tolist(), torch.equal(eps, budgets[rows])))
            return x + torch.where(rows == self.row, eps, 0).view(-1, 1, 1, 1)

    monkeypatch.setattr(AutoAttack, "_parts", lambda self: [Part(row) for row in range(1, 5)])
    bright = Function(lambda z: torch.stack([torch.zeros(len(z)), z.mean((1, 2, 3)) - 0.5], 1))
    result = AutoAttack(eps=0.5).run(bright, x, torch.zeros(5, dtype=torch.int64), eps=budgets, seed=0)
    assert given == [([1, 2, 3, 4], True), ([2, 3, 4], True), ([3, 4], True), ([4], True)]
    assert result.success.all()
    torch.testing.assert_close(result.distance[1:], budgets[1:])


@pytest.mark.parametrize(("classes", "aims"), [(2, 1), (3, 2), (4, 2)])
def test_few_classes(classes: int, aims: int, parts: Parts) -> None:
    model = Function(lambda x: constant(x)[:, :classes])
    x, y = torch.rand(2, 1, 5, 5), torch.zeros(2, dtype=torch.int64)
    result = AutoAttack(eps=0.1).run(model, x, y, seed=0)
    assert not result.success.any()
    assert len(parts) == 4
    # One run of 6 steps of APGD-CE, then one for each aim, and as many of FAB.
    assert (result.backwards == 6 + aims * (6 + 6)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_breaks_within_the_budget_alone_whatever_class_comes_first(norm: str) -> None:
    weight = torch.randn(10, 48, generator=torch.Generator().manual_seed(0))
    net = Function(lambda x: x.flatten(1) @ weight.T)
    x = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3
    y = net(x).argmax(1)
    exact = FAB(norm=norm).run(net, x, y)
    with Victim(net, x) as victim:
        rows, criterion = torch.arange(12), victim.criterion(y)
        for share, broken in ((1.05, True), (0.95, False)):
            targeted, draws = auto_attack._TargetedFAB(norm=norm, steps=30), Draws(0, rows)
            found = targeted._search(victim, x, criterion, rows, draws, exact.distance * share)
            assert ((net(found).argmax(1) != y) == broken).all()
            assert (distance(found, x, norm) <= exact.distance * share).all()
            assert broken or torch.equal(found, x)
        none = torch.zeros(12)
        nearest = FAB(norm=norm).toward(victim, x, criterion, rows, none, exact.prediction)
    torch.testing.assert_close(nearest.distances, exact.distance, rtol=0.01, atol=0)
    assert (net(nearest.points).argmax(1) == exact.prediction).all()


def test_rand_is_two_attacks_on_twenty_draws(parts: Parts, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:3], net(digits[0][:3]).argmax(1)
    noisy = EOT(Function(lambda z: constant(z) + 0.01 * torch.randn(len(z), 10)), 2)
    result = AutoAttack(eps=0.1, version="rand").run(noisy, x, torch.zeros(3, dtype=torch.int64), seed=0)
    assert [part.loss for part, _ in parts] == ["ce", "dlr"]
    assert (result.backwards == 2 * 6 * 20).all()
    with pytest.raises(ValueError, match=r"is for random models, and \w+ is deterministic"):
        AutoAttack(eps=0.1, version="rand").run(net, x, y)


def test_examples_that_are_no_images_are_refused_before_anything_runs(parts: Parts) -> None:
    with pytest.raises(ValueError, match=r"patches of images \(B, C, H, W\), got shape \(2, 25\)"):
        AutoAttack(eps=0.1).run(Function(constant), torch.rand(2, 25), torch.zeros(2, dtype=torch.int64))
    assert parts == []
