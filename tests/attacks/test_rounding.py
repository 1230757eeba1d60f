"""The rounding of float32 over the pixels of a large image: no point leaves its ball, and every success is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import BudgetAttack
from robustlit.attacks.draws import Draws
from robustlit.threat import Ball

SHAPE = (3, 224, 224)
BUDGETS = [replace(case, settings={**case.settings, "norm": "l2", "eps": 3.0})
           for case in CASES if issubclass(case.kind_of_attack, BudgetAttack)]  # fmt: skip
MINIMAL = [case for case in CASES if case.attack.norm == "l2" and not issubclass(case.kind_of_attack, BudgetAttack)]
EVERY = sorted({str(case): case for case in (*BUDGETS, *MINIMAL)}.items())


class Plane(nn.Module):
    """Two classes on the two sides of the plane through grey, at unit slope."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.flatten() / weight.norm() / 2)

    def forward(self, x: Tensor) -> Tensor:
        lead = ((x - 0.5).flatten(1) * self.weight).sum(1)
        return torch.stack([lead, -lead], 1)


def exact_distance(z: Tensor, x: Tensor) -> Tensor:
    return (z.double() - x.double()).flatten(1).norm(dim=1)


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_what_an_attack_breaks_the_table_counts_as_broken(name: str, case: Case) -> None:
    x = torch.rand(2, *SHAPE) * 0.5 + 0.25
    model = Plane(torch.randn(SHAPE))
    y = model(x).argmax(1)
    attack = replace(case.attack, **case.large)
    found = attack.run(model, x, y, seed=0)
    table = evaluate(model, (x, y), [attack]).table
    assert table.sort_values("index")["success"].tolist() == found.success.tolist()
    torch.testing.assert_close(found.distance.double(), exact_distance(found.x_adv, x), rtol=1e-6, atol=0)
    if isinstance(attack, BudgetAttack):
        assert (exact_distance(found.x_adv, x) <= attack.eps).all()
        assert found.success.all() or case.kind == "Square"  # whose few queries climb slowly
        accuracy = evaluate(model, (x, y), [attack]).accuracy(norm="l2", eps=attack.eps)
        assert accuracy.correct == int((~found.success).sum())


@pytest.mark.parametrize("eps", [0.25, 3.0, 30.0])
@pytest.mark.parametrize("kind", ["random", "uniform", "colour"])
def test_no_point_of_a_ball_leaves_it(kind: str, eps: float) -> None:
    # Equal pixels are rounded alike: their errors add up instead of cancelling.
    x = {"random": torch.rand(2, *SHAPE), "uniform": torch.tensor(0.7), "colour": torch.rand(2, 3, 1, 1)}[kind]
    x = (x * 0.6 + 0.2).expand(2, *SHAPE).contiguous()
    ball = Ball(x, torch.tensor([eps, eps / 3]), "l2")
    away = torch.ones_like(x) if kind == "uniform" else torch.randn_like(x)
    points = [
        ball.project(x + away),
        ball.project(ball.project(x + away)),
        ball.surface(away),
        ball.surface(-away),
        ball.step(x, away.clone(), ball.eps * 2),
        ball.random_point(Draws(0, torch.arange(2))),
    ]
    for point in points:
        assert (exact_distance(point, x) <= ball.eps.double()).all()
        assert torch.equal(point, point.clamp(0, 1))
    inside = exact_distance(ball.surface(away), x) >= ball.eps.double() * 0.999
    assert inside.all() or eps == 30.0  # where the box cuts the ball


def test_a_point_well_inside_is_not_moved() -> None:
    x = torch.rand(2, *SHAPE)
    ball = Ball(x, torch.tensor([3.0, 3.0]), "l2")
    z = ball.surface(torch.randn_like(x)).lerp(x, 0.5)
    assert exact_distance(ball.project(z), z).max() < 1e-5
