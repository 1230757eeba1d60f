"""No certificate is wrong: bounds against points, attacks and exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from bounded_nets import images, nets
from torch import nn

from robustlit.attacks import APGD, PGD, Square
from robustlit.attacks.draws import Draws
from robustlit.certify import CROWN, CROWNIBP, IBP, Certificate
from robustlit.certify.bounds import logits_of, margins_of
from robustlit.certify.ibp import interval_margins
from robustlit.certify.region import Region
from robustlit.models import Normalize
from robustlit.threat import Ball

NETS = nets()
KINDS = (IBP, CROWNIBP, CROWN)
_QUICK = ("linear_2", "cnn", "smooth_100")


def _marked(*names: str) -> list[Any]:
    """Return parameters, the nets that take seconds marked slow."""
    return [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def _case(name: str, count: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    net = NETS[name]
    return net, *images(net, count, 3 if "3_channels" in name else 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", _marked(*NETS))
def test_points_of_a_certified_ball_keep_their_class(name: str, norm: str) -> None:
    net, x, y = _case(name, 4)
    for kind in KINDS:
        found = kind(0.02 if norm == "linf" else 0.1, norm=norm, rounds=6).run(net, x, y)
        assert found.radius.max() > 0, kind
        ball = Ball(x.repeat_interleave(250, 0), found.radius.float().repeat_interleave(250), norm)
        draws = Draws(0, torch.arange(1000))
        inner = ball.random_point(draws)
        corners = ball.project(ball.x + (inner - ball.x).sign() * 10 * ball.eps.view(-1, 1, 1, 1))
        with torch.no_grad():
            for points in (inner, corners):
                assert torch.equal(net(points).argmax(1), y.repeat_interleave(250))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "pooled", "skip_3_channels", "jump"])
def test_attacks_break_nothing_that_is_certified(name: str) -> None:
    net, x, y = _case(name, 16)
    for norm, eps in (("linf", 0.02), ("l2", 0.1)):
        radius = torch.stack([k(eps, norm=norm, rounds=6).run(net, x, y).radius for k in KINDS]).amax(0)
        for attack in (PGD(steps=10, norm=norm), APGD(steps=10, norm=norm), Square(queries=50, norm=norm)):
            result = attack.run(net, x, y, seed=0, eps=radius.float())
            assert not result.success.any(), attack


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", [name for name in NETS if name != "linear_2"])
def test_every_layer_holds_the_values_of_every_point(name: str, norm: str) -> None:
    """The bounds of margins, below what points reach; here at budgets where nothing is certified."""
    net, x, y = _case(name, 3)
    eps = torch.full((3,), 0.1 if norm == "linf" else 1.0)
    region = Region(x.double(), eps, norm)
    tape, logits = logits_of(net, region)
    ball = Ball(x.repeat_interleave(500, 0), eps.repeat_interleave(500), norm)
    points = ball.surface(ball.random_point(Draws(0, torch.arange(1500))) - ball.x)
    with torch.no_grad():
        values = net(points)
    reached = (values.gather(1, y.repeat_interleave(500).unsqueeze(1)) - values).view(3, 500, -1).amin(1)
    for bends, parallel in ((False, False), (True, False), (True, True)):
        assert (margins_of(tape, logits, y, through_bends=bends, parallel=parallel) <= reached).all()


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_intervals_of_an_l2_ball_hold_the_exact_ones_of_the_first_layer(mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Normalize([0.3], [0.4]), nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode), nn.Flatten())
    x = torch.full((1, 1, 5, 5), 0.5, dtype=torch.float64)
    tape, node = logits_of(net, Region(x, torch.tensor([0.1]), "l2"))
    every = torch.eye(50, dtype=torch.float64).unsqueeze(1)
    exact = tape.least(node, every, through_bends=True).T
    assert (node.low <= exact + 1e-5).all()
    if mode == "zeros":
        assert (node.low >= exact - 1e-4).all()


def test_linear_net_is_certified_exactly() -> None:
    net = nets()["linear_2"]
    x, y = images(net, 20)
    for part in net[1].parameters():
        part.data *= 10
    weight, bias = (part.detach().double() for part in net[1].parameters())
    x = x * 0.2 + 0.4  # far from the box's walls
    with torch.no_grad():
        y = net(x).argmax(1)
    across = (weight[y] - weight[1 - y], bias[y] - bias[1 - y])
    margin = (across[0] * x.double().flatten(1)).sum(1) + across[1]
    assert margin.median() > 0.1
    for norm, dual in (("linf", 1), ("l2", 2)):
        exact = margin / across[0].norm(dual, dim=1)
        for kind in KINDS:
            for more, robust in ((-1e-4, True), (1e-4, False)):
                found, _, _ = kind(0.1, norm=norm).proven(net, x, y, (exact + more).clamp_min(0))
                assert (found == robust).all(), (norm, kind)


def test_intervals_hold_exact_rational_arithmetic() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y, eps = torch.rand(6, 4), torch.randint(3, (6,)), 0.05
    found, _ = interval_margins(net, Region(x.double(), torch.full((6,), eps), "linf"), y)
    for row in range(6):
        low = [max(Fraction(0), Fraction(v) - Fraction(eps)) for v in x[row].tolist()]
        high = [min(Fraction(1), Fraction(v) + Fraction(eps)) for v in x[row].tolist()]
        for layer in (net[0], net[2]):
            weights = [[Fraction(v) for v in line] for line in layer.weight.tolist()]
            shift = [Fraction(v) for v in layer.bias.tolist()]
            ends = [_range(line, low, high, b) for line, b in zip(weights, shift, strict=True)]
            low, high = [max(Fraction(0), a) for a, _ in ends], [max(Fraction(0), b) for _, b in ends]
        last = [[Fraction(v) for v in line] for line in net[4].weight.tolist()]
        shift = [Fraction(v) for v in net[4].bias.tolist()]
        for other in range(3):
            line = [a - b for a, b in zip(last[int(y[row])], last[other], strict=True)]
            exact, _ = _range(line, low, high, shift[int(y[row])] - shift[other])
            assert Fraction(found[row, other].item()) <= exact
            assert float(exact) - found[row, other].item() < 1e-4


def _range(
    line: list[Fraction], low: list[Fraction], high: list[Fraction], shift: Fraction
) -> tuple[Fraction, Fraction]:
    ends = [sorted((w * a, w * b)) for w, a, b in zip(line, low, high, strict=True)]
    return sum((e[0] for e in ends), shift), sum((e[1] for e in ends), shift)


def test_a_tie_and_a_net_that_returns_nan_are_not_certified() -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2)
            self.net.weight.data.zero_()
            self.net.bias.data.fill_(value)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    for value in (1.0, float("nan")):
        for kind in KINDS:
            radius = kind(0.1).run(Constant(value), torch.rand(2, 4), torch.zeros(2).long()).radius
            assert not radius.any()


@pytest.mark.parametrize("name", _marked("cnn", "pooled", "skip_3_channels"))
def test_linear_bounds_prove_all_that_intervals_prove(name: str) -> None:
    net, x, y = _case(name, 12)
    radii = [kind(0.02, rounds=8).run(net, x, y).radius for kind in KINDS]
    assert (radii[1] >= 0.98 * radii[0]).all()
    assert (radii[2] >= 0.98 * radii[1]).all()
    assert radii[2].mean() > 1.05 * radii[0].mean()


def test_a_radius_is_exact_at_the_budgets_and_nothing_lies_above_it() -> None:
    net, x, y = _case("cnn", 12)
    certificate: Certificate = CROWNIBP(0.01)
    radius = certificate.run(net, x, y, budgets=[0.003, 0.02]).radius
    for eps in (0.003, 0.01, 0.02):
        at = torch.full((12,), eps, dtype=torch.float64)
        assert torch.equal(certificate.proven(net, x, y, at)[0], radius >= eps)
    assert not certificate.proven(net, x, y, radius * 1.03)[0].all()
