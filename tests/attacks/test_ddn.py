"""DDN, and NearestL2 that is built on it."""

from __future__ import annotations

import pytest
import torch
from cases import Function, Linear
from torch import Tensor, nn

from robustlit.attacks.attack import Attack
from robustlit.attacks.ddn import DDN
from robustlit.attacks.fab import FAB
from robustlit.attacks.nearest_l2 import NearestL2

ATTACKS: list[Attack] = [DDN(), NearestL2(explore=50, refine=30, finish=30)]


@pytest.mark.slow
def test_several_walks_are_never_farther_and_mostly_nearer(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], net(digits[0][:20]).argmax(1)
    one, many = DDN().run(net, x, y, seed=0), NearestL2().run(net, x, y, seed=0)
    assert one.success.all()
    assert many.success.all()
    assert (many.distance <= one.distance * 1.002).float().mean() >= 0.9
    assert many.distance.mean() < one.distance.mean() * 0.995


def test_a_walk_finds_the_near_class_that_the_gradient_hides() -> None:
    # Class 1 rises fastest at the image and stays far off; class 2 is near, along another axis.
    def lure(x: Tensor) -> Tensor:
        a, b = x[:, 0] - 0.1, x[:, 1] - 0.1
        return torch.stack([torch.zeros_like(a), 1.9 * (1 - torch.exp(-8 * a)) - 2.0, 8 * b - 2.2], 1)

    x = torch.full((2, 2), 0.1, dtype=torch.float64)
    result = NearestL2().run(Function(lure), x, torch.zeros(2, dtype=torch.int64), seed=0)
    assert result.success.all()
    assert (result.distance < 0.275 * 1.01).all()


def test_a_walk_without_success_is_no_success_at_distance_zero() -> None:
    weight = torch.zeros(3, 9)
    weight[1:] = 1.0
    x = torch.full((2, 1, 3, 3), 0.5)
    for attack in ATTACKS:
        result = attack.run(Linear(weight, torch.tensor([50.0, 0.0, 0.0])), x, torch.tensor([0, 0]), seed=0)
        assert not result.success.any()
        assert (result.distance > 0).all()


def test_every_kept_walk_is_refined(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], net(digits[0][:4]).argmax(1)
    results = [NearestL2(explore=5, candidates=3, kept=k, refine=4, finish=2).run(net, x, y, seed=0) for k in (1, 2, 4)]
    assert [int(r.backwards[0] - results[0].backwards[0]) for r in results] == [0, 4, 12]
    assert (results[2].distance < results[0].distance - 1e-3).any()  # the nearest after refinement was not the first


def test_nearest_l2_takes_as_many_walks_of_fab_as_asked_for(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], net(digits[0][:6]).argmax(1)
    short = {"explore": 20, "candidates": 1, "refine": 2, "finish": 2}
    one, four = (NearestL2(**short, boundary=k).run(net, x, y, seed=0) for k in (1, 4))  # type: ignore[arg-type]
    assert (four.backwards - one.backwards == 3 * 10).all()  # of half as many steps as `explore`
    assert (four.forwards - one.forwards == 3 * 20).all()
    assert (four.distance < 0.99 * one.distance).any()


def test_nearest_l2_finds_pixels_that_do_not_count_at_the_image() -> None:
    def shy(z: Tensor) -> Tensor:  # eight pixels decide once they are brighter than .35; below, the others lead away
        flat = z.flatten(1)
        lead = 4 * (flat[:, :8] - 0.35).relu().sum(1) - 0.01 * flat[:, 8:].sum(1) - 2
        return torch.stack([torch.zeros_like(lead), lead], 1)

    x, y = torch.full((6, 1, 8, 8), 0.05), torch.zeros(6, dtype=torch.int64)
    result = NearestL2().run(Function(shy), x, y, seed=0)
    assert result.success.all()
    assert (result.distance >= 0.75).all()  # two pixels at .61 are the nearest, .78 away
    assert (result.distance < 0.9).all()
    assert not NearestL2(boundary=1).run(Function(shy), x, y, seed=0).success.any()


def test_some_walks_of_fab_are_towards_the_second_class_by_logit(net: nn.Module, digits: tuple[Tensor, Tensor],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    aims, toward = [], FAB.toward
    monkeypatch.setattr(FAB, "toward", lambda *args: (aims.append(args[6]), toward(*args))[1])
    x, y = digits[0][:4], digits[1][:4]
    NearestL2(explore=4, refine=1, finish=1).run(net, x, y, seed=0)
    wrong = net(x).scatter(1, y.unsqueeze(1), -torch.inf).topk(2).indices
    assert [torch.equal(aim, wrong[:, 0]) for aim in aims] == [True, True, False, True, True, False, False, True]
    assert all(torch.equal(aim, wrong[:, 1]) for aim in aims if not torch.equal(aim, wrong[:, 0]))
