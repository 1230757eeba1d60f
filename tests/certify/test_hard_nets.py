"""Nets that are easy to bound wrongly: what is proven holds for the net as float32 computes it, or it is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.certify import CROWN, CROWNIBP, IBP, Certificate, RandomizedSmoothing, UnknownLayerError
from robustlit.certify.bounds import NUMBERS, logits_of, margins_of
from robustlit.certify.region import Region
from robustlit.classifier import predicted
from robustlit.defenses import JumpReLUDefense, Smoothed

ALL = [IBP, CROWNIBP, CROWN]
FIRST = torch.zeros(1).long()


class _Net(nn.Module):
    def __init__(self, call: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.call(x, *self.layers)


def _linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


CONSTANT = _linear([[0.0] * 4, [0.0] * 4], [1.0, 0.0])  # class 0 for whatever image of 2 x 2
GREY = torch.full((1, 1, 2, 2), 0.5)


@pytest.mark.parametrize("certificate", ALL)
def test_repeated_pixels_are_farther_apart_in_l2(certificate: type[Certificate]) -> None:
    as_colour = _linear([[0.5] * 12], [-2.0])
    net = _Net(
        lambda x, c, o: o(F.relu(c(x[:, [0, 0, 0]].flatten(1)))), as_colour, _linear([[1.0], [-1.0]], [-0.01, 0.01])
    )
    assert net(GREY - 0.17).argmax(1) == 1  # at .34
    radius = certificate(0.3, norm="l2").run(net, GREY, FIRST).radius
    assert 0.3 < radius < 0.34


@pytest.mark.parametrize("certificate", ALL)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_a_resize_takes_the_pixels_that_float32_takes(certificate: type[Certificate], mode: str) -> None:
    net = _Net(
        lambda x, last: F.relu(last(F.interpolate(x, size=(28, 166), mode=mode).flatten(1))), nn.Linear(28 * 166, 2)
    ).eval()
    layer, x = net.layers[0], torch.zeros(1, 1, 28, 28)
    torch.nn.init.zeros_(layer.weight)
    layer.weight.data[0], layer.bias.data = torch.linspace(0, 1, 28 * 166), torch.tensor([0.0, 0.5])
    pixels = torch.arange(784.0).view(1, 1, 28, 28)
    # One result at a time: the pixel that float32 takes is 1, all others are 0.
    for place in (3 * 166 + 83, 5 * 166 + 1, 7 * 166 + 165):
        taken = int(F.interpolate(pixels, size=(28, 166), mode=mode).flatten()[place])
        layer.weight.data[0] = 0
        layer.weight.data[0, place] = 1.0
        x.zero_().view(-1)[taken] = 1.0
        radius = float(certificate(0.1).run(net, x, FIRST).radius)
        assert 0.49 < radius < 0.5


@pytest.mark.parametrize("scale", [3, 4.6, 28 / 3])
def test_pixels_beside_those_that_float64_takes_may_have_a_share(scale: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 1, 28, 28).round()  # where a neighbour is 0 or 1, all its share is an error
    net = _Net(lambda x: F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False).flatten(1))
    node = logits_of(net, Region(x.double(), torch.zeros(1), "linf"))[1]
    answers = net(x).double()
    assert ((answers >= node.low) & (answers <= node.high)).all()
    assert float((node.high - node.low).max()) < 1e-3


@pytest.mark.parametrize("certificate", ALL)
def test_nothing_is_proven_where_float32_may_overflow(certificate: type[Certificate]) -> None:
    net = nn.Sequential(nn.Flatten(), _linear([[1e38] * 4, [1.1e38] * 4], [0.0, 0.0]))
    x = torch.full((1, 1, 2, 2), 0.7)
    assert predicted(net(x)) == 1
    assert predicted(net(x + 0.2)) == -1
    assert certificate(0.3).run(net, x, FIRST + 1).radius < 0.2


@pytest.mark.parametrize("certificate", ALL)
def test_a_python_number_is_rounded_to_float32(certificate: type[Certificate]) -> None:
    net = _Net(lambda x: torch.cat([x.flatten(1) * 1.3999999177455902, x.flatten(1) * 1.4000001537799835], 1))
    x = torch.full((1, 1, 1, 1), 0.7200400233268738)
    assert net(x)[0, 0] == net(x)[0, 1]
    assert certificate(0.1).run(net, x, FIRST + 1).radius == 0


def test_a_slope_is_rounded_to_float32() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 1, 200, 200)
    for slope in (0.9, 0.7, 1 - 2.0**-25 - 2.0**-30):
        net = _Net(lambda x, slope=slope: F.leaky_relu(-x.flatten(1), slope))
        node = logits_of(net, Region(x.double(), torch.zeros(1), "linf"))[1]
        exact, answers = -slope * x.flatten(1).double(), net(x).double()
        noise = node.noise
        assert noise is not None
        assert ((answers - exact).abs() <= noise).all()


@pytest.mark.parametrize("certificate", [CROWNIBP, CROWN])
def test_a_jump_far_below_its_threshold_takes_no_proof_away(certificate: type[Certificate]) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    net[1].bias.data[0] = -5.0
    defended, x = JumpReLUDefense(net, 0.0), torch.rand(6, 1, 4, 4)
    y = defended(x).argmax(1)
    by_intervals = IBP(0.1).run(defended, x, y).radius
    radius = certificate(0.1).run(defended, x, y).radius
    assert (radius >= 0.99 * by_intervals).all()
    assert (radius > 1.02 * by_intervals).any()


@pytest.mark.parametrize("certificate", [CROWNIBP, CROWN])
def test_lines_that_are_not_finite_take_no_proof_away(
    certificate: type[Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(6, 1, 4, 4)
    y = net(x).argmax(1)
    by_intervals = IBP(0.1).run(net, x, y).radius
    nan = torch.full((1, 1), torch.nan, dtype=torch.float64)
    monkeypatch.setattr("robustlit.certify.activations.LeakyReLU.lines", lambda *_: ((nan, nan), (nan, nan)))
    assert torch.equal(certificate(0.1).run(net, x, y).radius, by_intervals)
    assert (by_intervals > 0).all()


def _other_for_tensors(x: Any, last: nn.Module) -> Any:
    logits = last(x.flatten(1))
    return -logits if isinstance(x, Tensor) else logits


@pytest.mark.parametrize("kind", ["type", "hook"])
def test_a_net_that_tells_bounds_from_a_tensor_is_an_error(kind: str) -> None:
    net: nn.Module = _Net(_other_for_tensors, CONSTANT)
    if kind == "hook":
        net = nn.Sequential(nn.Sequential(nn.Flatten(), CONSTANT))
        net.register_forward_hook(lambda module, inputs, logits: -logits)
    with pytest.raises(ValueError, match=r"logit of class 0 is -1 .*isinstance.*hook"):
        IBP(0.1).run(net, GREY, FIRST)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "a decision by <=": lambda x: x if x.mean((1, 2, 3)) <= 0.5 else -x,
    "all of a comparison": lambda x: x if (x <= 1).all() else -x,
    "a comparison as a number": lambda x: x * (x <= 0.7),
    "a comparison turned round": lambda x: x if ~(x <= 0.7) else -x,
    "a comparison as an index": lambda x: x[x <= 0.7],
    "a comparison after a slice": lambda x: x[:, x <= 0.7],
    "a tensor times a comparison": lambda x: x + torch.ones(4) * (x <= 0.7),
    "a function of a comparison": lambda x: x + F.relu(x <= 0.7),
    "a check for NaN": lambda x: -x if (x != x).any() else x,
    "a negative divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=-4),
    "a mean in half precision": lambda x: x.mean((2, 3), dtype=torch.bfloat16).float(),
    "a rounding division": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "dims by keyword": lambda x: x.permute(dims=(0, 1, 2, 3)),
    "a view as integers": lambda x: x.view(torch.int32),
    "an index of the batch": lambda x: x[torch.arange(len(x))],
    "a new dimension in front": lambda x: x[None].flatten(1, 2)[0],
    "an index that moves a batch of one": lambda x: x[:, [0], :, [0]],
    "pooling without channels": lambda x: F.max_pool2d(x[:, 0], 2, 1, 1),
    "averages without channels": lambda x: F.adaptive_avg_pool2d(x[:, 0], 1),
    "a convolution of the batch": lambda x: F.conv2d(x[:, 0], torch.ones(len(x), len(x), 1, 1)),
    "features of the batch": lambda x: F.linear(x[:, 0, 0, 0], torch.ones(len(x), len(x))),
    "a padded batch": lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)),
    "a product with a tensor of unknown kind": lambda x: x * "2",
}


@pytest.mark.parametrize("certificate", [IBP, CROWN])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_bounded_is_named(kind: str, batch: int, certificate: type[Certificate]) -> None:
    net = _Net(lambda x, last: last(REFUSED[kind](x).flatten(1)), nn.Linear(4, 2))
    with pytest.raises(UnknownLayerError, match=r"no bounds are known of .*which _Net"):
        certificate(0.1).run(net, GREY.repeat(batch, 1, 1, 1), FIRST.repeat(batch))


TAKEN: dict[str, Callable[[Any], Any]] = {
    "the whole batch": lambda x: x[: len(x)].flatten(1),
    "dim as axis": lambda x: torch.cat([x.mean(axis=1).flatten(1), x.flatten(1)], axis=1)[:, :4],
    "input by keyword": lambda x: torch.flatten(input=x, start_dim=1),
    "other by keyword": lambda x: torch.mul(x, other=2).flatten(1),
    "a number of NumPy": lambda x: (np.float64(2) * x - np.float32(0.5)).flatten(1),
    "one value of each image": lambda x: torch.cat([(2 * x.flatten(1)[:, 0] + 1).view(-1, 1), x.flatten(1)], 1)[:, :4],
    "a mean of each image": lambda x: torch.cat([x.mean((1, 2, 3)).view(-1, 1), x.flatten(1)], 1)[:, :4],
    "the last value": lambda x: torch.cat([x.flatten(1)[..., -1].view(-1, 1), x.flatten(1)[:, :3]], 1),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("certificate", ALL)
@pytest.mark.parametrize("kind", TAKEN)
def test_other_ways_to_say_it_give_the_bounds_of_the_same_layers(
    kind: str, certificate: type[Certificate], norm: str
) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 6), nn.Linear(6, 3)
    with torch.no_grad():
        mixed = TAKEN[kind](torch.eye(4).view(4, 1, 2, 2)) - TAKEN[kind](torch.zeros(4, 1, 2, 2))
        shift = TAKEN[kind](torch.zeros(1, 1, 2, 2))
        folded = nn.Linear(4, 6)
        folded.weight.data, folded.bias.data = first.weight @ mixed.T, first(shift)[0]
    x = torch.rand(5, 1, 2, 2)
    net = _Net(lambda x, first, last: last(F.relu(first(TAKEN[kind](x)))), first, last)
    same = _Net(lambda x, first, last: last(F.relu(first(x.flatten(1)))), folded, last)
    y = net(x).argmax(1)
    run = certificate(0.05, norm=norm, rounds=12)
    radius, other = run.run(net, x, y).radius, run.run(same, x, y).radius
    if certificate is CROWN:
        torch.testing.assert_close(radius, other, rtol=0.02, atol=1e-4)
    assert (radius <= 1.02 * other + 1e-4).all()  # intervals do not know that two values come of one
    assert (radius > 0).any()


@pytest.mark.parametrize("certificate", [*ALL, "smoothing"])
@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_no_class_has_are_an_error(certificate: Any, label: int) -> None:
    net: nn.Module = nn.Sequential(nn.Flatten(), CONSTANT)
    run = RandomizedSmoothing(0.3) if certificate == "smoothing" else certificate(0.3)
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 1\] for a model with 2 outputs.*{label}"):
        run.run(Smoothed(net, 0.25) if certificate == "smoothing" else net, GREY, torch.tensor([label]))


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("last", ["linear", "scaled", "sum"])
def test_many_classes_have_the_margins_of_few(last: str, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.Linear(6, 7)
    ends = {"linear": lambda z: z, "scaled": lambda z: 2 * z, "sum": lambda z: z + 0.5 * z}
    net = _Net(lambda x, first, second: ends[last](second(F.relu(first(x.flatten(1))))), *layers)
    x = torch.rand(5, 1, 2, 2)
    y = net(x).argmax(1)
    tape, logits = logits_of(net, Region(x.double(), torch.full((5,), 0.05), "linf"))
    few = margins_of(tape, logits, y, through_activations=through)
    for numbers in (8 * 7 * 7 * 5 - 8, 1):  # some classes at a time, one at a time
        monkeypatch.setattr("robustlit.certify.bounds.NUMBERS", numbers)
        torch.testing.assert_close(margins_of(tape, logits, y, through_activations=through), few, rtol=0, atol=1e-9)
    assert few.gather(1, y.unsqueeze(1)).eq(0).all()


def test_a_thousand_classes_are_bounded_a_few_at_a_time() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1000))
    x, most = torch.rand(20, 3, 4, 4), [0]
    dot = torch.einsum

    def watched(equation: str, *values: Tensor) -> Tensor:
        most[0] = max(most[0], *(each.numel() for each in values))
        return dot(equation, *values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "einsum", watched)
        IBP(0.01, rounds=1).run(net, x, net(x).argmax(1))
    assert 0 < most[0] <= NUMBERS // 8  # all at once are 1000 * 20 * 1000
