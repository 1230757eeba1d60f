"""DDN, and NearestL2 that is built on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks.attack import Attack, AttackResult
from robustlit.attacks.ddn import DDN
from robustlit.attacks.nearest_l2 import NearestL2
from robustlit.threat import distance

ATTACKS: list[Attack] = [DDN(), NearestL2(explore=50, refine=30, finish=30)]
FIELDS = ("x_adv", "success", "prediction", "distance", "forwards", "backwards")


def _name(attack: Attack) -> str:
    return f"{attack.name}-{attack.norm}"


every = pytest.mark.parametrize("attack", ATTACKS, ids=_name)


class Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@every
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 4, 4)], ids=str)
def test_linear_model_at_nearly_the_optimum(attack: Attack, shape: tuple[int, ...], batch: int, targeted: bool) -> None:
    x = torch.rand(batch, *shape) * 0.1 + 0.45
    weight = torch.randn(2, math.prod(shape))
    slope = weight[0] - weight[1]
    score = x.flatten(1) @ slope
    y = (score < 0).long()
    optimum = score.abs() / slope.norm(p=1 if attack.norm == "linf" else 2)  # the box plays no part
    before = x.clone()
    result = attack.run(Linear(weight), x, y, target=1 - y if targeted else None, seed=0)
    assert torch.equal(x, before)
    assert result.success.all()
    assert (result.distance >= optimum * 0.999).all()
    assert (result.distance <= optimum * 1.05 + 1e-4).all()
    assert result.x_adv.shape == x.shape


@every
@pytest.mark.parametrize("targeted", [False, True])
def test_the_result_agrees_with_the_net(
    attack: Attack, targeted: bool, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:10], net(digits[0][:10]).argmax(1)
    label = y.clone()
    label[[0, 5]] = (label[[0, 5]] + 1) % 10  # misclassified to begin with
    target = (y + 3) % 10 if targeted else None
    before = x.clone()
    result = attack.run(net, x, label, target=target, seed=0)
    assert torch.equal(x, before)
    with torch.no_grad():
        prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, prediction == target if targeted else prediction != label)
    assert result.success.float().mean() > 0.9
    torch.testing.assert_close(result.distance, distance(result.x_adv, x, attack.norm))
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1
    if not targeted:
        assert torch.equal(result.x_adv[[0, 5]], x[[0, 5]])
        assert result.distance[[0, 5]].tolist() == [0, 0]
        assert result.forwards[[0, 5]].tolist() == [2, 2]
        assert result.backwards[[0, 5]].tolist() == [0, 0]


@every
@pytest.mark.parametrize("targeted", [False, True])
def test_alone_and_in_another_order(
    attack: Attack, targeted: bool, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, x, y = net.double(), digits[0][:4].double(), digits[1][:4]
    target = (y + 3) % 10

    def run(rows: Tensor) -> AttackResult:
        criterion = target[rows] if targeted else None
        return attack.run(net, x[rows], y[rows], target=criterion, index=rows + 40, seed=7)

    whole = run(torch.arange(4))
    assert whole.x_adv.dtype == torch.float64
    for rows in (torch.tensor([0]), torch.tensor([3]), torch.tensor([2, 3, 0, 1])):
        part = run(rows)
        for name in FIELDS:
            torch.testing.assert_close(getattr(part, name), getattr(whole, name)[rows], rtol=0, atol=1e-9, msg=name)


@every
def test_a_constant_model_is_no_success_and_gives_no_nan(attack: Attack) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * 0 + torch.tensor([5.0, 0.0, 0.0])

    x = torch.rand(3, 1, 4, 4)
    result = attack.run(Constant(), x, torch.zeros(3, dtype=torch.int64), seed=0)
    assert not result.success.any()
    assert result.x_adv.isfinite().all()
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1


@every
@pytest.mark.filterwarnings("ignore:.*not finite")
def test_one_example_without_numbers_fails_alone(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], net(digits[0][:4]).argmax(1)

    x = x.clone()
    x[2] = 1 - x[2]  # brighter than any walk from the others gets
    y[2] = net(x[2:3]).argmax(1)[0]

    class Breaks(nn.Module):
        """The third example has logits only while it is unchanged."""

        def forward(self, z: Tensor) -> Tensor:
            marked = z.flatten(1).mean(1) > 0.35
            changed = (z - x[2]).abs().flatten(1).amax(1) > 1e-9
            return torch.where((marked & changed).unsqueeze(1), math.nan, net(z))

    result = attack.run(Breaks(), x, y, seed=0)
    assert result.success.tolist() == [True, True, False, True]
    assert result.x_adv.isfinite().all()


@every
def test_negative_logits_and_inference_mode(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Negative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm, self.drop = net, nn.BatchNorm1d(10), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.norm(self.body(x))) - 100

    model, x = Negative(), digits[0][:4]
    y = net(x).argmax(1)
    net.eval()
    model.norm.train()
    model.drop.train()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        result = attack.run(model, x, y, seed=0)
    assert result.success.all()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_hyperparameters() -> None:
    for bad in ({"steps": 0}, {"gamma": 1.0}, {"initial_norm": 0}, {"norm": "linf"}):
        with pytest.raises(ValueError, match=r"must"):
            DDN(**bad)
    for name in ("explore", "candidates", "kept", "refine", "finish"):
        with pytest.raises(ValueError, match=name):
            NearestL2(**{name: 0})


def test_several_walks_are_never_farther_and_mostly_nearer(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], net(digits[0][:20]).argmax(1)
    one, many = DDN().run(net, x, y, seed=0), NearestL2().run(net, x, y, seed=0)
    assert one.success.all()
    assert many.success.all()
    assert (many.distance <= one.distance * 1.002).float().mean() >= 0.9
    assert many.distance.mean() < one.distance.mean() * 0.995


def test_the_walk_finds_the_near_class_that_the_gradient_does_not_show() -> None:
    # Class 1 rises fastest at the image and stays far off; class 2 is near, along another axis.
    class Lure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x[:, 0] - 0.1, x[:, 1] - 0.1
            lure = 1.9 * (1 - torch.exp(-8 * a)) - 2.0
            return torch.stack([torch.zeros_like(a), lure, 8 * b - 2.2], 1)

    x = torch.full((2, 2), 0.1, dtype=torch.float64)
    result = NearestL2().run(Lure(), x, torch.zeros(2, dtype=torch.int64), seed=0)
    assert result.success.all()
    assert (result.distance < 0.275 * 1.01).all()


def test_a_walk_without_a_witness_is_no_witness_at_distance_zero() -> None:
    weight = torch.zeros(3, 9)
    weight[1:] = 1.0
    x = torch.full((2, 1, 3, 3), 0.5)
    for attack in ATTACKS:
        result = attack.run(Linear(weight, torch.tensor([50.0, 0.0, 0.0])), x, torch.tensor([0, 0]), seed=0)
        assert not result.success.any()
        assert (result.distance > 0).all()
