"""Linear models, where the least distance and the worst point of a ball are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CASES, Case, Linear
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, BudgetAttack

SHAPES = [(12,), (1, 3, 4), (3, 4, 4)]
BATCHES = [1, 3]


def attacks(norm: str, eps: float) -> list[BudgetAttack]:
    return [
        FGSM(eps=eps, norm=norm),
        BIM(eps=eps, norm=norm, steps=7),
        BIM(eps=eps, norm=norm, steps=12, step_size=eps),  # reaches the border again and again
        PGD(eps=eps, norm=norm, steps=25, random_start=False),
        PGD(eps=eps, norm=norm, steps=40, step_size=eps / 2),
        PGD(eps=eps, norm=norm, steps=40, step_size=eps / 2, restarts=2),
    ]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", range(6))
def test_linf_ends_at_the_worst_vertex(number: int, shape: tuple[int, ...], batch: int) -> None:
    attack = attacks("linf", 0.2)[number]
    x = (torch.rand(batch, *shape) * 1.4 - 0.2).clamp(0, 1)
    weight = torch.randn(2, math.prod(shape))
    y = torch.arange(batch) % 2
    model = Linear(weight, torch.zeros(2))
    toward_other = (weight[1] - weight[0]).sign().view(shape) * (1 - 2 * y).view(-1, *[1] * len(shape))
    vertex = (x + 0.2 * toward_other).clamp(0, 1)
    for i in range(batch):  # one bias per example, out of reach, so that no early success ends the ascent
        model.bias.zero_()
        model.bias[y[i]] = 100.0
        result = attack.run(model, x[i : i + 1], y[i : i + 1], seed=0)
        torch.testing.assert_close(result.x_adv, vertex[i : i + 1], rtol=0, atol=1e-6)
        assert not result.success.any()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", range(6))
def test_l2_ends_in_the_worst_direction(number: int, shape: tuple[int, ...], batch: int) -> None:
    attack = attacks("l2", 0.3)[number]
    x = torch.rand(batch, *shape) * 0.2 + 0.4  # the ball lies inside the box
    weight = torch.randn(2, math.prod(shape))
    y = torch.zeros(batch, dtype=torch.int64)
    result = attack.run(Linear(weight, torch.tensor([100.0, 0.0])), x, y, seed=0)
    direction = torch.nn.functional.normalize(weight[1] - weight[0], dim=0).view(shape)
    # From a random start the ascent turns towards the direction, without ever quite being there.
    tolerance = 1e-3 if getattr(attack, "random_start", False) else 1e-5
    torch.testing.assert_close(result.x_adv, x + 0.3 * direction, rtol=0, atol=tolerance)
    assert (result.distance <= 0.3 + 1e-6).all()
    assert (result.distance >= 0.3 - 1e-4).all()


def _linear(case: Case, shape: tuple[int, ...], examples: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model of two classes, images, labels, and the distance of each from the boundary in closed form."""
    norm, size = case.attack.norm, int(torch.tensor(shape).prod())
    x = torch.full((examples, *shape), 0.5) + (torch.rand(examples, *shape) - 0.5) * 0.04
    slope = torch.randn(size)
    gains = slope.abs().sort(descending=True).values * 0.48  # of painting a pixel black or white
    lead = {"linf": 0.15 * slope.norm(p=1), "l2": 0.3 * slope.norm(), "l0": gains[:2].sum() * 0.9}[norm]
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(size), slope]))
        model[1].bias.copy_(torch.stack([lead, -0.5 * slope.sum()]))
        logits = model(x)
        y = logits.argmax(1)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    least = margin / slope.norm(p=1) if norm == "linf" else margin / slope.norm()
    return model, x, y, torch.ones(examples) if norm == "l0" else least


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        # WorstCase takes its whole plan to the thresholds.
        pytest.param(case, shape, id=f"{case}-{shape}", marks=[pytest.mark.slow] * (case.kind == "WorstCase"))
        for case in CASES
        for shape in ((2, 4, 4), (32,), (4, 8))
        if case.flat or len(shape) == 3
    ],
)
def test_a_linear_model_of_two_classes(case: Case, shape: tuple[int, ...]) -> None:
    examples = {3: 5, 2: 1, 1: 3}[len(shape)]
    model, x, y, least = _linear(case, shape, examples)
    attack = case.kind_of_attack(norm=case.attack.norm, **case.thorough)
    targets = ([None] if case.attack.untargeted else []) + [1 - y] * case.attack.targeted
    for target in targets:
        if isinstance(attack, BudgetAttack):
            result = attack.run(model, x, y, target=target, seed=0, eps=least * (case.near or 2))
            assert result.success.all()
            assert (result.distance <= least * (case.near or 2) + 1e-6).all()
            short = attack.run(model, x, y, target=target, seed=0, eps=least * 0.99)
            assert not short.success.any()
            assert (short.distance >= least * 0.9).all()  # it went as far as it could
        else:
            result = attack.run(model, x, y, target=target, seed=0)
            assert result.success.all()
            assert (result.distance >= least * 0.999).all()
            if case.near is not None:
                assert (result.distance <= least * case.near).all()
        assert torch.equal(result.prediction, 1 - y)
