"""NewtonFool: the paper's step, computed so that it does not vanish with confidence."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks.newtonfool import NewtonFool


def _float64_step(net: nn.Module, x: Tensor, y: Tensor, eta: float) -> Tensor:
    """The paper's formula, in float64, no longer than linear log odds need to come down to chance."""
    z = x.clone().requires_grad_(True)
    p = net(z).softmax(1).gather(1, y[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(p.sum(), z)
    gradient = gradient.masked_fill(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)), 0)
    length = gradient.flatten(1).norm(dim=1)
    delta = torch.minimum(eta * x.flatten(1).norm(dim=1) * length, p.detach() - 1 / 10)
    sure = p.detach()
    delta = torch.minimum(delta, ((sure / (1 - sure)).log() + math.log(9)) * sure * (1 - sure))
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
    confident = Function(lambda z: net(z) * 1000)
    x = digits[0][:20]
    y = net(x).argmax(1)
    assert (confident(x).softmax(1).amax(1) == 1).float().mean() > 0.9
    sharp, plain = NewtonFool().run(confident, x, y), NewtonFool().run(net, x, y)
    assert sharp.success.all()
    assert sharp.distance.median() < 1.2 * plain.distance.median()


@pytest.mark.parametrize("shape", [(12,), (1, 3, 4), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_net(shape: tuple[int, ...], classes: int) -> None:
    x = torch.rand(3, *shape, dtype=torch.float64) * 0.2 + 0.4
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)).double()
    with torch.no_grad():
        model[1].weight.normal_()
        model[1].bias -= model(torch.full_like(x[:1], 0.5))[0]
        logits = model(x)
    y = logits.argmax(1)
    result = NewtonFool(eta=0.002).run(model, x, y)
    assert result.success.all()
    if classes == 2:
        optimum = (logits[:, 0] - logits[:, 1]).abs() / (model[1].weight[0] - model[1].weight[1]).norm()
        assert (result.distance >= optimum).all()
        assert (result.distance <= 1.05 * optimum + 0.002 * x.flatten(1).norm(dim=1)).all()


def test_an_example_leaves_when_it_is_broken(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    result = NewtonFool().run(net, x, y)
    assert len({*result.forwards.tolist()}) > 5
    shortest = 0.01 * x.flatten(1).norm(dim=1)
    assert (result.distance <= shortest * (result.backwards - 1).clamp_min(0) + 1e-5).all()
