"""Which examples the verdict looks at hardest: those that the sweep broke soonest beyond the budget."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.evaluation import evaluate
from robustlit.results import Check, Evaluation
from robustlit.verdict import effort, from_attacks
from robustlit.verdict.probe import Probe, nearest_of, standing_of

judge = import_module("robustlit.verdict.judge")  # the package's name is also that of the function

Make = Callable[..., Evaluation]
BROKEN_AT = {0: 0.1, 1: 0.2, 2: 0.36, 3: 0.36, 4: 0.355, 5: 0.6, 6: 0.6, 7: None, 8: None}


@pytest.fixture
def swept(table: Make) -> Evaluation:
    """Nine examples under PGD at .3, .4 and .6; the last of ten is misclassified."""
    rows = [(k, "pgd", eps, at) for k, at in BROKEN_AT.items() for eps in (0.3, 0.4, 0.6)]
    frame = table([*rows, (9, "pgd", 0.3, 0.0)]).to_frame()
    frame.loc[frame["index"] == 9, "clean"] = False
    return Evaluation(frame, {"complete": True})


def test_who_fell_soonest_beyond_the_budget_stands_for_all(swept: Evaluation) -> None:
    assert standing_of(swept, "linf", 0.3) == {k: k > 1 for k in BROKEN_AT}
    assert nearest_of(swept, "linf", 0.3, 10, 2, seed=0) == ([2, 3, 4], 9)
    assert nearest_of(swept, "linf", 0.3, 10, 3, seed=0) == ([2, 3, 4], 9)
    assert nearest_of(swept, "linf", 0.3, 10, 4, seed=0) == ([2, 3, 4, 5, 6], 9)
    assert nearest_of(swept, "linf", 0.3, 10, 100, seed=0) == ([2, 3, 4, 5, 6, 7, 8], 9)


def test_a_part_of_them_stands_for_as_large_a_part(swept: Evaluation) -> None:
    drawn = [nearest_of(swept, "linf", 0.3, 2, 3, seed=seed) for seed in range(20)]
    assert {stands_for for _, stands_for in drawn} == {6}  # two of three
    assert all(len(set(chosen)) == 2 and set(chosen) < {2, 3, 4} for chosen, _ in drawn)
    assert {k for chosen, _ in drawn for k in chosen} == {2, 3, 4}
    assert nearest_of(swept, "linf", 0.3, 0, 3, seed=0) == ([], 0)


def test_a_single_budget_tells_nobody_apart(table: Make) -> None:
    single = table([(k, "pgd", 0.3, 0.1 if k < 3 else None) for k in range(10)])
    assert nearest_of(single, "linf", 0.3, 10, 2, seed=0) == ([3, 4, 5, 6, 7, 8, 9], 10)


def test_attacks_of_another_norm_or_that_knew_less_tell_nothing(swept: Evaluation) -> None:
    frame = swept.to_frame()
    near_8 = frame[frame["index"] == 8].assign(success=True, linf=0.31, eps=0.4)
    for change in ({"attack": "ddn", "norm": "l2"}, {"knowledge": "greybox"}):
        others = frame.assign(success=False, **change)
        evaluation = Evaluation(pd.concat([frame, others[others["index"] != 8], near_8.assign(**change)]))
        chosen, _ = nearest_of(evaluation, "linf", 0.3, 10, 3, seed=0)
        assert chosen == [2, 3, 4]


def test_the_hardest_are_those_nearest_to_the_boundary(linear: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    model, x, y, distance = linear
    standing = distance > 0.01
    probe = Probe(model, x, y, torch.arange(len(y)), standing, PGD(eps=0.01), "linf", 0.01, 0, stands_for=90)
    hard = probe.hardest(6)
    nearest = distance.masked_fill(~standing, torch.inf).topk(6, largest=False).indices
    assert hard.index.tolist() == sorted(nearest.tolist())
    assert hard.n == 90


@pytest.mark.parametrize(("richer", "queries"), [(1, 50), (1000, 1000)])
def test_the_check_by_square_looks_at_the_nearest_with_what_is_left(
    net: nn.Module,
    digits: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    richer: int,
    queries: int,
) -> None:
    looked: list[tuple[Probe, int]] = []

    def look(probe: Probe, asked: int) -> Check:
        looked.append((probe, asked))
        return Check(13, "gradient-free does not win", "PASS", "")

    data, attacks = (digits[0][:120], digits[1][:120]), {"pgd": PGD(eps=0.03, steps=5)}
    found = evaluate(net, data, attacks, grid={"linf": [0.05, 0.1, 0.2]})
    frame = found.to_frame()
    frame["forwards"] *= richer
    evaluation = Evaluation(frame, found.meta)
    monkeypatch.setattr(judge, "affordable", lambda *_: judge.Sizes(wide=10, few=5, hard=6))
    monkeypatch.setattr(effort, "LEAST", 0)
    monkeypatch.setattr(from_attacks, "gradient_free", look)
    judge.verdict(evaluation, net, data, attacks)
    ((hard, asked),) = looked
    chosen, stands_for = nearest_of(evaluation, "linf", 0.03, 10, 12, seed=0)
    assert set(hard.index.tolist()) <= set(chosen)
    assert (len(hard), hard.n, asked) == (6, stands_for, queries)
    labels = digits[1][hard.index]
    assert torch.equal(hard.y, labels)
    assert torch.equal(hard.x, digits[0][hard.index])


class Blind(nn.Module):
    """Answers, and gives no gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.net(x)


def test_without_gradients_nobody_is_taken_for_the_nearest(
    net: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Probe] = []

    def look(probe: Probe, asked: int) -> Check:
        looked.append(probe)
        return Check(13, "gradient-free does not win", "PASS", "")

    data, attacks = (digits[0][:60], digits[1][:60]), {"pgd": PGD(eps=0.03, steps=5)}
    evaluation = evaluate(net, data, attacks, grid={"linf": [0.05, 0.1]})
    monkeypatch.setattr(judge, "affordable", lambda *_: judge.Sizes(wide=30, few=5, hard=6))
    monkeypatch.setattr(from_attacks, "gradient_free", look)
    judge.verdict(evaluation, Blind(net), data, attacks)
    (hard,) = looked
    standing = standing_of(evaluation, "linf", 0.03)
    drawn = judge._probe(net, (*data, torch.arange(60)), standing, attacks["pgd"], "linf", 0.03, 0, 30)
    assert hard.index.tolist() == drawn.first(6).index.tolist()
    assert hard.n == 6  # they stand for themselves


@pytest.mark.parametrize(("steps", "status"), [(8, "PASS"), (3, "INCONCLUSIVE")])
def test_the_end_of_a_short_attack_is_not_the_whole_of_it(
    linear: tuple[nn.Module, Tensor, Tensor, Tensor], steps: int, status: str
) -> None:
    model, x, y, distance = linear
    attack = PGD(eps=0.01, steps=steps)  # on a linear net the corner of the ball is reached in five steps
    probe = Probe(model, x, y, torch.arange(len(y)), distance > 0.01, attack, "linf", 0.01, 0)
    assert from_attacks.finished(probe).status == status
