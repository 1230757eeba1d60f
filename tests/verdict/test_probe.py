"""Which examples a verdict looks at hardest: those nearest to the decision boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.evaluation import evaluate
from robustlit.results import Check, Evaluation
from robustlit.verdict import effort
from robustlit.verdict.checks import CHECKS
from robustlit.verdict.context import Context
from robustlit.verdict.effort import FULL
from robustlit.verdict.probe import Probe, nearest_of, robust_examples
from robustlit.verdict.spec import FEW, HARD, ROWS, SHORT, WIDE

judge = import_module("robustlit.verdict.judge")  # the name of the package's function hides the module

Make = Callable[..., Evaluation]
BROKEN_AT = {0: 0.1, 1: 0.2, 2: 0.36, 3: 0.36, 4: 0.355, 5: 0.6, 6: 0.6, 7: None, 8: None}


@pytest.fixture
def swept(table: Make) -> Evaluation:
    """Nine examples under PGD at .3, .4 and .6; the last of ten is misclassified."""
    rows = [(k, "pgd", eps, at) for k, at in BROKEN_AT.items() for eps in (0.3, 0.4, 0.6)]
    frame = table([*rows, (9, "pgd", 0.3, 0.0)]).to_frame()
    frame.loc[frame["index"] == 9, "clean"] = False
    return Evaluation(frame, {"complete": True})


def test_examples_broken_soonest_beyond_the_budget_represent_all(swept: Evaluation) -> None:
    assert robust_examples(swept, "linf", 0.3) == {k: k > 1 for k in BROKEN_AT}
    for enough, chosen in {2: [2, 3, 4], 3: [2, 3, 4], 4: [2, 3, 4, 5, 6], 100: [2, 3, 4, 5, 6, 7, 8]}.items():
        assert nearest_of(swept, "linf", 0.3, 10, enough, seed=0) == (chosen, 9)


def test_a_part_of_them_represents_as_large_a_part(swept: Evaluation) -> None:
    drawn = [nearest_of(swept, "linf", 0.3, 2, 3, seed=seed) for seed in range(20)]
    assert {represents for _, represents in drawn} == {6}  # two of three
    assert all(len(set(chosen)) == 2 and set(chosen) < {2, 3, 4} for chosen, _ in drawn)
    assert {k for chosen, _ in drawn for k in chosen} == {2, 3, 4}
    assert nearest_of(swept, "linf", 0.3, 0, 3, seed=0) == ([], 0)


def test_at_a_single_budget_all_robust_examples_are_equally_near(table: Make) -> None:
    single = table([(k, "pgd", 0.3, 0.1 if k < 3 else None) for k in range(10)])
    assert nearest_of(single, "linf", 0.3, 10, 2, seed=0) == ([3, 4, 5, 6, 7, 8, 9], 10)


def test_attacks_of_another_norm_or_of_less_knowledge_are_left_out(swept: Evaluation) -> None:
    frame = swept.to_frame()
    near_8 = frame[frame["index"] == 8].assign(success=True, linf=0.31, eps=0.4)
    for change in ({"attack": "ddn", "norm": "l2"}, {"knowledge": "greybox"}):
        others = frame.assign(success=False, **change)
        evaluation = Evaluation(pd.concat([frame, others[others["index"] != 8], near_8.assign(**change)]))
        assert nearest_of(evaluation, "linf", 0.3, 10, 3, seed=0)[0] == [2, 3, 4]


def test_the_hardest_are_those_nearest_to_the_boundary(linear: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    model, x, y, distance = linear
    robust = distance > 0.01
    probe = Probe(model, x, y, torch.arange(len(y)), robust, PGD(eps=0.01), "linf", 0.01, 0, represents=90)
    hard = probe.hardest(6)
    nearest = distance.masked_fill(~robust, torch.inf).topk(6, largest=False).indices
    assert hard.index.tolist() == sorted(nearest.tolist())
    assert hard.n == 90


class Blind(nn.Sequential):
    """A network without gradients."""

    forward = torch.no_grad()(nn.Sequential.forward)


@pytest.mark.parametrize(
    ("blind", "richer", "queries"), [(False, 1, 50), (False, 1000, 1000), (True, 1, 50)], ids=["poor", "rich", "blind"]
)
def test_square_attacks_the_nearest_examples_with_the_passes_that_are_left(
    net: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, blind: bool, richer: int,
    queries: int,
) -> None:  # fmt: skip
    seen: list[Probe] = []
    asked: list[int] = []

    def square(**options: Any) -> PGD:
        asked.append(options["queries"])
        return PGD(eps=options["eps"], steps=1)

    def look(spec: Any, context: Context) -> Check:
        seen.append(context.hard)
        return CHECKS[12].look(spec, context)  # type: ignore[misc]

    data, attacks = (digits[0][:120], digits[1][:120]), {"pgd": PGD(eps=0.03, steps=5)}
    found = evaluate(net, data, attacks, grid={"linf": [0.05, 0.1, 0.2]})
    frame = found.to_frame()
    frame["forwards"] *= richer
    evaluation = Evaluation(frame, found.meta)
    monkeypatch.setattr(effort, "affordable", lambda *_: {WIDE: 10, FEW: 5, HARD: 6, SHORT: 5, ROWS: 5})
    monkeypatch.setattr(effort, "LEAST", 0)
    monkeypatch.setattr("robustlit.verdict.from_attacks.Square", square)
    monkeypatch.setattr(Probe, "breaks", lambda self, attack: 0)
    checks = [replace(spec, look=look) if spec.number == 13 else spec for spec in CHECKS if spec.number != 5]
    monkeypatch.setattr(judge, "CHECKS", checks)
    judge.verdict(evaluation, Blind(net) if blind else net, data, attacks)
    (hard,) = seen
    assert asked == [queries]
    assert torch.equal(hard.y, digits[1][hard.index])
    assert torch.equal(hard.x, digits[0][hard.index])
    assert len(hard) == 6
    if blind:  # without gradients no example can be called the nearest
        robust = robust_examples(evaluation, "linf", 0.03)
        right = torch.tensor(sorted(robust))
        drawn = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(0))[:10]]
        assert (hard.index.tolist(), hard.n) == (sorted(drawn.tolist())[:6], 6)
    else:
        chosen, represents = nearest_of(evaluation, "linf", 0.03, 10, 12, seed=0)
        assert set(hard.index.tolist()) <= set(chosen)
        assert hard.n == represents


@pytest.mark.parametrize(("steps", "status"), [(8, "PASS"), (3, "INCONCLUSIVE")])
def test_a_short_attack_has_no_end_to_look_at(
    linear: tuple[nn.Module, Tensor, Tensor, Tensor], steps: int, status: str
) -> None:
    model, x, y, distance = linear
    attack = PGD(eps=0.01, steps=steps)  # on a linear network the corner of the ball is reached in five steps
    probe = Probe(model, x, y, torch.arange(len(y)), distance > 0.01, attack, "linf", 0.01, 0)
    spec: Any = CHECKS[7]
    assert spec.look(spec, Context(Any, x, y, probe, FULL, None, None)).status == status  # type: ignore[arg-type]
