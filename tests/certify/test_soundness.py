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
from robustlit.certify.activations import Activation, JumpReLU, LeakyReLU, Sigmoid, Tanh
from robustlit.certify.bounds import logits_of, margins_of
from robustlit.certify.crown import tightened
from robustlit.certify.ibp import are_positive, interval_margins
from robustlit.certify.region import Region
from robustlit.certify.tape import Node
from robustlit.certify.windows import chain_of, windowed_bounds
from robustlit.checks import rounded_up
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
    for through, same_slopes in ((False, False), (True, False), (True, True)):
        assert (margins_of(tape, logits, y, through_activations=through, same_slopes=same_slopes) <= reached).all()


@pytest.mark.parametrize("name", NETS)
def test_the_bounds_of_a_point_are_what_the_net_computes(name: str) -> None:
    """A wrong constant or sign in a layer, which the width of a ball would hide."""
    net, x, y = _case(name, 3)
    logits = net(x).detach()
    exact = logits.gather(1, y.unsqueeze(1)) - logits
    for norm in ("linf", "l2"):
        tape, node = logits_of(net, Region(x.double(), torch.zeros(3), norm), tightened)
        for through, same_slopes in ((False, False), (True, False), (True, True)):
            margins = margins_of(tape, node, y, through_activations=through, same_slopes=same_slopes)
            torch.testing.assert_close(margins.float(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_intervals_of_an_l2_ball_hold_the_exact_ones_of_the_first_layer(mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Normalize([0.3], [0.4]), nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode), nn.Flatten())
    x = torch.full((1, 1, 5, 5), 0.5, dtype=torch.float64)
    tape, node = logits_of(net, Region(x, torch.tensor([0.1]), "l2"))
    every = torch.eye(50, dtype=torch.float64).unsqueeze(1)
    exact = tape.lower_bounds(node, every, through_activations=True).T
    assert (node.low <= exact + 1e-5).all()
    if mode == "zeros":
        assert (node.low >= exact - 1e-4).all()


@pytest.mark.parametrize("same_slopes", [False, True])
@pytest.mark.parametrize("op", [LeakyReLU(), LeakyReLU(0.1), JumpReLU(0.3), Sigmoid(), Tanh()], ids=range(5))
def test_the_lines_of_an_activation_lie_on_either_side_of_it(op: Activation, same_slopes: bool) -> None:
    ends = torch.rand(500, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6 - 3
    ends[:9] = torch.tensor([[-2, -1], [-2, 0], [-2, 0.2], [-0.1, 2], [0, 1], [0.2, 0.4], [0.3, 1], [1, 2], [1, 1]])[
        ..., None
    ]
    low, high = ends.amin(1), ends.amax(1)
    slopes = torch.stack([torch.ones_like(low), -torch.ones_like(low)])
    (found,), constant = op.backward_bounds(slopes, [Node(0, None, (), low, high)], same_slopes)
    for share in torch.linspace(0, 1, 21, dtype=torch.float64):
        x = low + share * (high - low)
        value = op.interval([Node(0, None, (), x, x)])[0]
        assert ((slopes * value).squeeze(2) >= (found * x).squeeze(2) + constant - 1e-6).all()


class _Mirrored(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.permute(0, 1, 3, 2)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(1), nn.AvgPool2d(3), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.3), _Mirrored()],
    ids=lambda layer: type(layer).__name__,
)
def test_what_float32_makes_of_a_layer_lies_within_its_bounds(layer: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(layer, nn.Flatten()).eval()
    for parameter in layer.parameters():
        parameter.data.normal_()
    x = torch.randn(20, 1, 12, 12)
    region = Region(x.double(), torch.zeros(20), "linf")
    region.low = region.high = region.x
    _, node = logits_of(net, region)
    values = net(x).double()
    assert (node.low <= values).all()
    assert (values <= node.high).all()
    assert (node.high - node.low).max() < 1e-4


@pytest.mark.parametrize(("norm", "eps", "padding"), [("linf", [0.1, 0.2], 1), ("l2", [0.3, 0.6], 0)])
def test_bounds_by_windows_are_those_of_whole_planes(norm: str, eps: list[float], padding: int) -> None:
    """In L2, bounds by windows are looser where the image is padded."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, padding), dilation=(1, 2)), nn.LeakyReLU(0.1),
        nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 6, 3, stride=(1, 2), padding=1, groups=2), nn.Flatten(),
    )  # fmt: skip
    tape, flat = logits_of(net, Region(torch.rand(2, 2, 8, 6, dtype=torch.float64), torch.tensor(eps), norm))
    chain = chain_of(flat.inputs[0])
    assert chain is not None
    low, high = windowed_bounds(tape, chain, 500)
    every = torch.eye(flat.low.shape[1], dtype=torch.float64).unsqueeze(1).expand(-1, 2, -1)
    least, negative = tape.lower_bounds(flat, torch.cat([every, -every]), through_activations=True).split(len(every))
    torch.testing.assert_close(low.flatten(1), least.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(high.flatten(1), -negative.T, rtol=0, atol=1e-9)


def test_crown_narrows_a_layer_to_what_linear_bounds_allow() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    region = Region(torch.rand(4, 8, dtype=torch.float64), torch.full((4,), 0.2), "linf")
    (plain, before), (_, after) = (
        (tape, [node for node in tape.nodes if node.op is not None and node.op.is_nonlinear][1].inputs[0])
        for tape, _ in (logits_of(net, region), logits_of(net, region, tightened))
    )
    every = torch.eye(30, dtype=torch.float64).unsqueeze(1).expand(-1, 4, -1)
    low, negative = (plain.lower_bounds(before, slopes, through_activations=True).T for slopes in (every, -every))
    unstable = (before.low < 0) & (before.high > 0)
    for found, expected in (
        (after.low, torch.maximum(before.low, low)), (after.high, torch.minimum(before.high, -negative)),
    ):  # fmt: skip
        torch.testing.assert_close(found[unstable], expected[unstable], rtol=0, atol=1e-9)
    assert (after.high - after.low).mean() < 0.9 * (before.high - before.low).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_certified_alone_as_in_a_batch(kind: type[Certificate]) -> None:
    net, x, y = _case("cnn", 5)
    eps = torch.linspace(0.001, 0.3, 5, dtype=torch.float64)
    for order in (eps, eps.flip(0)):
        whole = kind().proven(net, x, y, order)[0]
        assert 0 < whole.sum() < 5
        alone = [kind().proven(net, x[k : k + 1], y[k : k + 1], order[k : k + 1])[0] for k in range(5)]
        assert torch.equal(whole, torch.cat(alone))


def test_a_value_that_another_window_chooses_may_be_the_largest_here() -> None:
    class Pooled(nn.Module):
        """0.1 against how much the larger of the first two pixels exceeds the first."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = nn.functional.max_pool2d(x, (2, 1), 1).flatten(1)
            weight = torch.tensor([[0.0, 0, 0, 0, 0], [1, 0, -1, 0, 0]])
            return nn.functional.linear(torch.cat([pooled, x.flatten(1)], 1), weight, torch.tensor([0.1, 0]))

    x = torch.tensor([0.5, 0.45, 0.1]).view(1, 1, 3, 1)
    radius = CROWN(0.1).run(Pooled(), x, torch.tensor([0])).radius  # the second may be 0.1 larger from 0.075 on
    assert 0 < float(radius) <= 0.075


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
        def __init__(self, value: float | torch.Tensor) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2)
            self.net.weight.data.zero_()
            self.net.bias.data[:] = value

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    assert are_positive(torch.tensor([[0.0, 1, 1], [0, 0, 1], [0, 1, torch.nan]]), torch.zeros(3).long()).tolist() == [
        True, False, False,
    ]  # fmt: skip
    within_rounding = torch.tensor([1 + 2.0**-23, 1.0])
    for value in (1.0, float("nan"), within_rounding):
        for kind in KINDS:
            radius = kind(0.1).run(Constant(value), torch.rand(2, 4), torch.zeros(2).long()).radius
            assert not radius.any()


@pytest.mark.parametrize("name", _marked("cnn", "pooled", "skip_3_channels"))
def test_linear_bounds_prove_all_that_intervals_prove(name: str) -> None:
    net, x, y = _case(name, 12)
    radii = [kind(0.02, rounds=8).run(net, x, y).radius for kind in KINDS]
    assert (radii[1] >= 0.98 * radii[0]).all()
    assert (radii[2] >= 0.98 * radii[1]).all()
    assert radii[2].mean() > 1.05 * radii[1].mean() > 1.05 * radii[0].mean()


def test_a_radius_is_exact_at_the_budgets_and_nothing_lies_above_it() -> None:
    net, x, y = _case("cnn", 12)
    certificate: Certificate = CROWNIBP(0.01)
    radius = certificate.run(net, x, y, budgets=[0.003, 0.02]).radius
    for eps in (0.003, 0.01, 0.02):
        at = torch.full((12,), eps, dtype=torch.float64)
        assert torch.equal(certificate.proven(net, x, y, at)[0], radius >= eps)
    assert not certificate.proven(net, x, y, radius * 1.03)[0].all()
    several = [0.001, 0.003, 0.006, 0.02, 0.05]
    once = CROWNIBP(0.01, rounds=1).run(net, x, y, budgets=several).radius
    for eps in (0.01, *several):
        at = torch.full((12,), eps, dtype=torch.float64)
        assert torch.equal(certificate.proven(net, x, y, at)[0], once >= eps)


def test_no_radius_is_larger_than_the_box_and_rounding_is_no_way_out_of_it() -> None:
    net = nn.Linear(4, 2)
    net.weight.data.zero_()
    net.bias.data.copy_(torch.tensor([1.0, 0.0]))
    x, y = torch.rand(3, 4), torch.zeros(3).long()
    assert (IBP(0.3).run(net, x, y).radius == 1).all()
    for norm in ("linf", "l2"):
        region = Region(x.double() * 0.2 + 0.4, torch.full((3,), 0.1), norm)
        assert (
            region.high - region.x >= rounded_up(torch.tensor(0.1).double(), norm) - 1e-12
        ).all()  # as attacks may reach
