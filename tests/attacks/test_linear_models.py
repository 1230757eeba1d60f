"""Linear models, where the best attack is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, BudgetAttack

SHAPES = [(12,), (1, 3, 4), (3, 4, 4)]
BATCHES = [1, 3, 8]


class Linear(nn.Module):
    """Logits of a flat image: `weight` (K, D), and a bias that holds the true class up by a margin per example."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1) @ self.weight.T
        return logits if self.bias is None else logits + self.bias


def attacks(norm: str, eps: float) -> list[BudgetAttack]:
    return [
        FGSM(eps=eps, norm=norm),
        BIM(eps=eps, norm=norm, steps=7),
        BIM(eps=eps, norm=norm, steps=12, step_size=eps),  # walks into the border again and again
        PGD(eps=eps, norm=norm, steps=25, random_start=False),
        PGD(eps=eps, norm=norm, steps=40, step_size=eps / 2),
        PGD(eps=eps, norm=norm, steps=40, step_size=eps / 2, restarts=2),
    ]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", range(6))
def test_linf_ends_at_the_vertex_that_is_worst(number: int, shape: tuple[int, ...], batch: int) -> None:
    attack = attacks("linf", 0.2)[number]
    x = (torch.rand(batch, *shape) * 1.4 - 0.2).clamp(0, 1)
    weight = torch.randn(2, math.prod(shape))
    y = torch.arange(batch) % 2
    model = Linear(weight, torch.zeros(2))
    toward_other = (weight[1] - weight[0]).sign().view(shape) * (1 - 2 * y).view(-1, *[1] * len(shape))
    vertex = (x + 0.2 * toward_other).clamp(0, 1)
    for i in range(batch):  # one bias an example, out of reach, so that no early witness ends the climb
        model.bias.zero_()
        model.bias[y[i]] = 100.0
        before = x.clone()
        result = attack.run(model, x[i : i + 1], y[i : i + 1], seed=0)
        assert torch.equal(x, before)
        torch.testing.assert_close(result.x_adv, vertex[i : i + 1], rtol=0, atol=1e-6)
        assert not result.success.any()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", range(6))
def test_l2_ends_in_the_direction_that_is_worst(number: int, shape: tuple[int, ...], batch: int) -> None:
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


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", range(6))
def test_the_boundary_is_crossed_where_geometry_says(number: int, shape: tuple[int, ...], norm: str) -> None:
    batch = 8
    attack = attacks(norm, 0.1)[number]
    x = torch.rand(batch, *shape) * 0.1 + 0.45
    weight = torch.randn(2, math.prod(shape))
    slope = weight[0] - weight[1]
    y = (x.flatten(1) @ slope < 0).long()
    margin = (x.flatten(1) @ slope).abs()
    needed = margin / slope.norm(p=1 if norm == "linf" else 2)  # the dual norm
    farthest = 1 if norm == "linf" else slope.abs().max() / slope.norm()
    assert (needed * farthest).max() < 0.44  # so that the box plays no part
    slack = 0.01 if not getattr(attack, "random_start", False) else 0.02
    eps = needed * torch.tensor([1 + slack, 0.99]).repeat(batch // 2)
    result = attack.run(Linear(weight), x, y, eps=eps, seed=0)
    assert result.success.tolist() == [True, False] * (batch // 2)
    assert (result.distance <= eps + 1e-6).all()
    assert (result.distance >= 0.98 * torch.minimum(eps, needed)).all()
    assert torch.equal(result.prediction, torch.where(result.success, 1 - y, y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_targeted_reaches_the_target_and_untargeted_any(norm: str, shape: tuple[int, ...], batch: int) -> None:
    eps = 0.45 if norm == "linf" else 3.0
    x = torch.full((batch, *shape), 0.5) + torch.randn(batch, *shape) * 0.01
    weight = torch.linalg.qr(torch.randn(math.prod(shape), 4)).Q.T.contiguous() * 3  # four directions at right angles
    model = Linear(weight)
    y = model(x).argmax(1)
    for number, attack in enumerate(attacks(norm, eps)):
        for shift in (1, 2, 3):
            target = (y + shift) % 4
            result = attack.run(model, x, y, target=target, seed=0)
            assert result.success.all(), (number, shift)
            assert torch.equal(result.prediction, target)
            assert torch.equal(model(result.x_adv).argmax(1), target)
        anywhere = attack.run(model, x, y, seed=0)
        assert anywhere.success.all()
        assert (anywhere.prediction != y).all()
        for found in (result, anywhere):
            assert (found.distance <= eps + 1e-6).all()
            assert found.x_adv.min() >= 0
            assert found.x_adv.max() <= 1
            assert found.x_adv.shape == x.shape


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_budget_of_zero_is_the_identity_for_that_example_alone(norm: str) -> None:
    x = torch.rand(6, 1, 3, 4) * 0.5 + 0.25
    model = Linear(torch.randn(3, 12))
    y = model(x).argmax(1)
    eps = torch.tensor([0.0, 0.25, 0.0, 0.25, 0.25, 0.0])
    for attack in attacks(norm, 0.25):
        result = attack.run(model, x, y, eps=eps, seed=0)
        idle = eps == 0
        assert torch.equal(result.x_adv[idle], x[idle])
        assert torch.equal(result.distance[idle], torch.zeros(3))
        assert not result.success[idle].any()
        assert (result.distance[~idle] > 0).all()


def test_two_ways_to_call_are_one_attack() -> None:
    x = torch.rand(4, 12) * 0.5 + 0.25
    model = Linear(torch.randn(3, 12))
    y, target = model(x).argmax(1), torch.tensor([0, 1, 2, 0])
    attack, index = PGD(eps=0.2, steps=3), torch.arange(4) + 9
    keywords = {"target": target, "index": index, "seed": 3, "eps": torch.full((4,), 0.1)}
    assert torch.equal(attack(model, x, y, **keywords), attack.run(model, x, y, **keywords).x_adv)
