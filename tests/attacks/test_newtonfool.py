"""NewtonFool: the paper's step, formed so that it does not fade."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.attack import Attack, AttackResult
from robustlit.attacks.newtonfool import NewtonFool
from robustlit.threat import distance

ALL = [NewtonFool(), NewtonFool(eta=0.03, steps=60)]
FIELDS = ("x_adv", "success", "prediction", "distance", "forwards", "backwards")
SHAPES = [(12,), (1, 3, 4), (3, 4, 4)]
SHARE_OF_ROUNDING_BROKEN = 0.9
UNUSABLE: list[tuple[Callable[[], Attack], str]] = [
    (lambda: NewtonFool(steps=0), "steps must be"),
    (lambda: NewtonFool(eta=0), "eta must be positive"),
    (lambda: NewtonFool(eta=math.inf), "eta must be positive"),
    (lambda: NewtonFool(norm="linf"), "norm must be"),
]


class Linear(nn.Module):
    """Logits of a flat image."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("bias", torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def _same(part: AttackResult, whole: AttackResult, rows: Tensor) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[rows], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_the_result_agrees_with_the_net(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    before = x.clone()
    result = attack.run(net, x, y, seed=0)
    assert torch.equal(x, before)
    with torch.no_grad():
        prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, prediction != y)
    assert result.success.float().mean() >= 0.9
    torch.testing.assert_close(result.distance, distance(result.x_adv, x, attack.norm))
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_alone_in_part_and_in_another_order(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net, x, y, n = net.double(), digits[0][:10].double(), digits[1][:10].clone(), 10
    y[4] = (y[4] + 1) % 10
    whole = attack.run(net, x, y, seed=7)
    assert len({*whole.backwards.tolist()}) >= 3  # they leave at different steps, or this says nothing of compaction
    for rows in [torch.tensor([i]) for i in range(n)] + [torch.randperm(n), torch.randperm(n)[:4]]:
        _same(attack.run(net, x[rows], y[rows], seed=7), whole, rows)


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_a_misclassified_example_comes_back_as_it_was(
    attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:6], net(digits[0][:6]).argmax(1)
    wrong = torch.tensor([True, False, False, True, False, False])
    result = attack.run(net, x, torch.where(wrong, (y + 1) % 10, y))
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert torch.equal(result.distance[wrong], torch.zeros(2))
    assert result.success[wrong].all()
    assert result.forwards[wrong].tolist() == [2, 2]
    assert result.backwards[wrong].tolist() == [0, 0]
    assert (result.distance[~wrong] > 0).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ALL, ids=str)
def test_nothing_spoils_an_attack(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:6]
    y = net(x).argmax(1)

    class Of(nn.Module):
        def __init__(self, output: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.output = output

        def forward(self, z: Tensor) -> Tensor:
            return self.output(z)

    # No gradient at all; a tie of all classes; logits that are not numbers anywhere.
    for output in (lambda z: net(z).round() * 0 + F.one_hot(y, 10)[: len(z)], lambda z: net(z) * 0):
        result = attack.run(Of(output), x, torch.zeros_like(y) if output(x).sum() == 0 else y)
        assert not result.success.any()
        assert result.x_adv.isfinite().all()
    for value in (float("nan"), float("inf"), -float("inf")):

        def breaks(z: Tensor, value: float = value) -> Tensor:
            """Not a number for the first image (told by its own look) as soon as it has moved."""
            near = torch.cdist(z.detach().flatten(1), x.flatten(1))
            broken = (near.argmin(1) == 0) & (near.amin(1) > 0)
            return torch.where(broken.unsqueeze(1) & (torch.arange(10) != 3), value, net(z))

        result = attack.run(Of(breaks), x, y)
        assert result.success.tolist() == [False] + [True] * 5
        assert not result.finite[0]
        assert result.x_adv.isfinite().all()
    # All logits negative; as confident as a distilled net.
    shifted = attack.run(Of(lambda z: net(z) - 1000), x, y)
    assert shifted.success.all()
    confident = attack.run(Of(lambda z: net(z) * 1000), x, y)
    assert confident.success.all()


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_modes_and_gradients_are_left_alone(attack: Attack) -> None:
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 3)
    )
    x, y = torch.rand(4, 2, 8, 8), torch.tensor([0, 1, 2, 0])
    state = {k: v.clone() for k, v in body.state_dict().items()}
    with torch.inference_mode():
        result = attack.run(body.train(), x, y)
    assert all(m.training for m in body.modules())
    assert all(p.grad is None for p in body.parameters())
    assert all(torch.equal(v, state[k]) for k, v in body.state_dict().items())
    assert result.success.any()


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_a_defense_is_judged_itself(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Rounding(nn.Module):
        stochastic = False

        def forward(self, x: Tensor) -> Tensor:
            return net((x * 4).round() / 4)

        def attack_view(self) -> nn.Module:
            return Through()

    class Through(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x + ((x * 4).round() / 4 - x).detach())

    x, y = digits[0][:12], digits[1][:12]
    defended = Rounding()
    result = attack.run(defended, x, y)
    assert torch.equal(result.success, defended(result.x_adv).argmax(1) != y)
    assert result.success.float().mean() >= SHARE_OF_ROUNDING_BROKEN


def test_unusable_hyperparameters() -> None:
    for make, part in UNUSABLE:
        with pytest.raises(ValueError, match=part):
            make()


def _float64_step(net: nn.Module, x: Tensor, y: Tensor, eta: float) -> Tensor:
    """The paper's formula as printed, in float64."""
    z = x.clone().requires_grad_(True)
    p = net(z).softmax(1).gather(1, y[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(p.sum(), z)
    gradient = gradient.masked_fill(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)), 0)
    length = gradient.flatten(1).norm(dim=1)
    delta = torch.minimum(eta * x.flatten(1).norm(dim=1) * length, p.detach() - 1 / 10)
    return (x - (delta / length**2).view(-1, 1, 1, 1) * gradient).clamp(0, 1)


@pytest.mark.parametrize("eta", [0.01, 0.3, 100.0])
def test_one_step_is_the_formula_of_the_paper(eta: float, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net = net.double()
    x = digits[0][:20].double()  # most pixels at an edge of the box
    y = net(x).argmax(1)
    expected = _float64_step(net, x, y, eta)
    result = NewtonFool(eta=eta, steps=1).run(net, x, y)
    torch.testing.assert_close(result.x_adv, expected, rtol=1e-9, atol=1e-9)
    lengths = (expected - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert (lengths < eta * 0.9).any() == (eta > 0.01)  # both arms of the minimum, in different cases


def test_a_saturated_softmax_does_not_stop_it(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    # In float32 the probability is 1 and its gradient 0: the formula as printed gives 0 / 0.
    class Confident(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x) * 1000

    x = digits[0][:20]
    y = net(x).argmax(1)
    assert (Confident()(x).softmax(1).amax(1) == 1).float().mean() > 0.9
    sharp, plain = NewtonFool().run(Confident(), x, y), NewtonFool().run(net, x, y)
    assert sharp.success.all()
    assert sharp.distance.median() < 1.2 * plain.distance.median()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_net(shape: tuple[int, ...], batch: int, classes: int) -> None:
    x = torch.rand(batch, *shape, dtype=torch.float64) * 0.2 + 0.4
    model = Linear(torch.randn(classes, math.prod(shape), dtype=torch.float64))
    with torch.no_grad():
        model.bias -= model(torch.full_like(x[:1], 0.5))[0]
    logits = model(x)
    y = logits.argmax(1)
    result = NewtonFool(eta=0.002).run(model, x, y)
    assert result.success.all()
    if classes == 2:
        gap = logits.gather(1, y[:, None]).squeeze(1) - logits.gather(1, 1 - y[:, None]).squeeze(1)
        optimum = gap / (model.weight[0] - model.weight[1]).norm()
        assert (result.distance >= optimum).all()
        assert (result.distance <= 1.05 * optimum + 0.002 * x.flatten(1).norm(dim=1)).all()


def test_each_leaves_when_it_is_broken(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    result = NewtonFool().run(net, x, y)
    assert len({*result.forwards.tolist()}) > 5
    shortest = 0.01 * x.flatten(1).norm(dim=1)
    assert (result.distance <= shortest * (result.backwards - 1).clamp_min(0) + 1e-5).all()


def test_it_stays_in_the_box_at_every_step(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Guard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.min() >= 0
            assert x.max() <= 1
            return net(x)

    NewtonFool(steps=10, eta=0.1).run(Guard(), digits[0][:10], digits[1][:10])
