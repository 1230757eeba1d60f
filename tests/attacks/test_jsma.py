"""JSMA: the exact pair of greatest saliency, its budget of values, and its cost."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Linear
from torch import Tensor, nn

from robustlit.attacks import jsma
from robustlit.attacks.jsma import JSMA, most_salient_pair

SHAPES = [(12,), (1, 3, 4), (3, 4, 4)]


def _brute_force(a: Tensor, b: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest saliency over all D x D pairs, and whether any pair meets the conditions."""
    gain, harm = a[:, :, None] + a[:, None], b[:, :, None] + b[:, None]
    allowed = (gain > 0) & (harm < 0) & free[:, :, None] & free[:, None] & ~torch.eye(a.shape[1], dtype=torch.bool)
    return torch.where(allowed, -gain * harm, -1.0).flatten(1).amax(1), allowed.flatten(1).any(1)


@pytest.mark.parametrize("at_once", [3, 200, 2**22])
@pytest.mark.parametrize(
    "kind", ["independent", "ties", "alike", "opposed", "all equal", "mostly empty", "tiny", "huge"]
)
def test_the_pair_is_that_of_brute_force(kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsma, "_AT_ONCE", at_once)
    empty = 0
    for size in (1, 2, 3, 5, 17, 40):
        a, b = torch.randn(2, 60, size, dtype=torch.float64)
        free = torch.rand(60, size) < torch.rand(60, 1) * 2
        if kind == "ties":
            a, b = a.round(), b.round()
        elif kind == "alike":
            b = -a + 0.1 * b  # one dominates: a short Pareto front
        elif kind == "opposed":
            b = a + 0.01 * b  # none dominates: a long one
        elif kind == "all equal":
            a, b = torch.ones_like(a), -torch.ones_like(b)
        elif kind == "mostly empty":
            a, b = a - 2, b + 1
        elif kind == "tiny":
            a, b = (a * 1e-30).float(), (b * 1e-30).float()
        elif kind == "huge":
            a, b = (a * 1e30).float(), (b * 1e30).float()
        pair, found = most_salient_pair(a, b, free)
        a, b = a.double(), b.double()
        expected, exists = _brute_force(a, b, free)
        assert torch.equal(found, exists)
        empty += int((~exists).sum())
        p, q = pair[exists].unbind(1)
        row = torch.nonzero(exists).squeeze(1)
        assert (p != q).all()
        assert (free[row, p] & free[row, q]).all()
        score = -(a[row, p] + a[row, q]) * (b[row, p] + b[row, q])
        torch.testing.assert_close(score, expected[exists], rtol=1e-6, atol=0)
    assert empty > 0  # the one-pixel images at least


def test_no_pairs_of_all_values() -> None:
    a, b = torch.randn(2, 2, 150_528)
    pair, found = most_salient_pair(a, b, torch.ones_like(a, dtype=torch.bool))  # D x D would be 84 GiB each
    assert found.all()
    assert (pair[:, 0] != pair[:, 1]).all()


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.3, -0.3])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_first_pair_of_a_linear_net(theta: float, outputs: str, shape: tuple[int, ...], batch: int) -> None:
    x = torch.full((batch, *shape), 0.5, dtype=torch.float64)
    model = Linear(torch.randn(4, math.prod(shape), dtype=torch.float64))
    with torch.no_grad():
        model.bias[0] = 200.0  # out of reach
    y, target = torch.zeros(batch, dtype=torch.int64), torch.arange(batch) % 3 + 1
    result = JSMA(theta=theta, gamma=1e-6, outputs=outputs).run(model, x, y, target=target)
    step = 0.5 if abs(theta) == 1 else abs(theta)
    moved = (result.x_adv - x).flatten(1)
    for row in range(batch):
        changed = torch.nonzero(moved[row]).flatten()
        assert len(changed) == 2
        rounds = round(1 / 0.3 + 0.5) if step < 0.5 else 1
        assert (moved[row][changed] / math.copysign(1, theta) <= min(0.5, step * rounds) + 1e-9).all()
        a = model.weight[target[row]]
        b = model.weight.sum(0) - a
        if outputs == "probabilities":
            a = a - model.weight[0]  # which has all of the probability
            b = -a
        a, b = a * math.copysign(1, theta), b * math.copysign(1, theta)
        expected, exists = _brute_force(a[None], b[None], torch.ones(1, len(a), dtype=torch.bool))
        assert exists.all()
        p, q = changed
        torch.testing.assert_close(-(a[p] + a[q]) * (b[p] + b[q]), expected[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_an_empty_map_stops_the_example(outputs: str) -> None:
    # Every value that could rise is good for the true class and bad for the target.
    model = Linear(torch.tensor([[1.0, 2.0, 3.0, 1.0], [-1.0, -1.0, -2.0, -3.0]]), torch.tensor([-0.5, 0.0]))
    x, y = torch.full((2, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    result = JSMA(gamma=1.0, outputs=outputs).run(model, x, y, target=torch.tensor([1, 1]))
    assert torch.equal(result.x_adv, x)
    assert not result.success.any()
    assert (result.backwards <= 2).all()
    assert JSMA(theta=-1.0, gamma=1.0, outputs=outputs).run(model, x, y).success.all()


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.4])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_the_budget_of_values(theta: float, outputs: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    target = (y + 1) % 10
    for gamma, limit in ((0.01, 6), (0.0001, 2)):  # 784 values; an even number, and one pair at least
        result = JSMA(theta=theta, gamma=gamma, outputs=outputs).run(net, x, y, target=target)
        assert (result.distance <= (7 if gamma == 0.01 else 2)).all()
        assert result.distance.max() >= limit - 1
        moved = (result.x_adv - x) * math.copysign(1, theta)
        assert moved.min() >= 0
        if abs(theta) == 1:
            edge = 1.0 if theta > 0 else 0.0
            assert (result.x_adv[moved > 0] == edge).all()


def test_targets_are_reached_and_not_the_next_class(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:15], digits[1][:15]
    for outputs, share in (("probabilities", 0.8), ("logits", 0.6)):
        result = JSMA(outputs=outputs).run(net, x, y, target=(y + 4) % 10)
        assert result.success.float().mean() >= share
        assert torch.equal(result.prediction[result.success], ((y + 4) % 10)[result.success])
        anywhere = JSMA(outputs=outputs).run(net, x, y)
        assert anywhere.success.float().mean() >= result.success.float().mean()
        assert anywhere.distance.median() < result.distance.median()


def test_values_that_can_hardly_move_are_not_chosen() -> None:
    model = Linear(torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 1.0, 1.0]]), torch.tensor([20.0, 0.0]))
    x, y = torch.tensor([[0.999, 0.999, 0.0, 0.0]]), torch.tensor([0])
    result = JSMA(gamma=0.5, outputs="probabilities").run(model, x, y)
    assert (result.x_adv != x).tolist() == [[False, False, True, True]]


def test_few_backward_passes(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:10], digits[1][:10]
    for outputs, each in (("probabilities", 1), ("logits", 2)):
        result = JSMA(outputs=outputs).run(net, x, y)
        assert (result.backwards <= each * (result.distance / 2 + 1)).all()
        assert (result.forwards <= result.distance / 2 + 3).all()
