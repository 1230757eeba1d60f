"""DeepFool: the nearest boundary, at a lower cost than the paper's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Defended, Linear
from torch import Tensor, nn

from robustlit.attacks.deepfool import DeepFool

SHAPES = [(12,), (1, 3, 4), (3, 4, 4)]


def _boxless(batch: int, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Linear, Tensor]:
    """Images in the middle of the box and a linear net whose boundaries are near."""
    x = torch.rand(batch, *shape, dtype=torch.float64) * 0.2 + 0.4
    model = Linear(torch.randn(classes, math.prod(shape), dtype=torch.float64))
    with torch.no_grad():
        model.bias -= model(torch.full_like(x[:1], 0.5))[0]
    return x, model, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("classes", [2, 3, 10, 40])
def test_the_nearest_boundary_of_a_linear_net(norm: str, shape: tuple[int, ...], batch: int, classes: int) -> None:
    x, model, y = _boxless(batch, shape, classes)
    gap = model(x).gather(1, y[:, None]) - model(x)
    slopes = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight, 2 if norm == "l2" else 1, dim=2)
    optimum = (gap / slopes).scatter(1, y[:, None], math.inf).amin(1)
    result = DeepFool(norm=norm, candidates=None).run(model, x, y)
    assert result.success.all()
    assert (result.distance >= optimum * (1 - 1e-9)).all()
    assert (result.distance <= optimum * 1.02 + 1e-6).all()
    assert (result.forwards <= 16).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_first_step_is_the_formula_of_the_paper(norm: str) -> None:
    x, model, y = _boxless(3, (1, 3, 4), 2)
    result = DeepFool(norm=norm, overshoot=0.5, steps=1).run(model, x, y)
    gap = (model(x).gather(1, y[:, None]) - model(x)).amax(1)
    w = model.weight[1 - y] - model.weight[y]
    if norm == "l2":
        direction = (gap / w.norm(dim=1) ** 2)[:, None] * w
    else:
        direction = (gap / w.norm(p=1, dim=1))[:, None] * w.sign()
    moved = (result.x_adv - x).flatten(1)
    torch.testing.assert_close(F.normalize(moved), F.normalize(direction))
    assert (moved.norm(dim=1) <= 1.02 * direction.norm(dim=1)).all()  # trimmed


def test_a_few_candidates_are_those_of_highest_logit() -> None:
    # The nearest boundary is that of the class of lowest logit; the runner-up's lies farther.
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    model = Linear(weight, torch.tensor([1.0, 0.2, -55.0], dtype=torch.float64))
    x, y = torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    assert DeepFool(candidates=2).run(model, x, y).prediction.tolist() == [1]
    assert DeepFool(candidates=3).run(model, x, y).prediction.tolist() == [2]
    assert DeepFool(candidates=None).run(model, x, y).prediction.tolist() == [2]


def test_skipping_classes_finds_the_same_at_a_lower_cost(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:60], digits[1][:60]
    pruned = DeepFool().run(net, x, y)
    assert pruned.success.all()
    assert pruned.backwards.float().mean() < 9  # nine would be the first step's alone
    spread = (pruned.distance - DeepFool(candidates=None).run(net, x, y).distance).abs().max()
    assert spread == 0  # ten classes are all


def test_it_comes_as_near_as_the_authors_loop_without_the_trimming(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:40], digits[1][:40]
    distances = []
    for image, label in zip(x, y, strict=True):  # algorithm 2 as printed, all ten classes at every step
        z = image.clone()
        for _ in range(50):
            z.requires_grad_(True)
            logits = net(z[None])[0]
            if logits.argmax() != label:
                break
            jacobian = torch.stack(
                [torch.autograd.grad(logits[k] - logits[label], z, retain_graph=True)[0] for k in range(10)]
            )
            gaps, norms = (logits - logits[label]).abs().detach(), jacobian.flatten(1).norm(dim=1)
            ratio = (gaps / norms).nan_to_num(math.inf)
            ratio[label] = math.inf
            k = ratio.argmin()
            z = (z.detach() + 1.02 * (ratio[k] + 1e-4) * jacobian[k] / norms[k]).clamp(0, 1)
        distances.append((z.detach() - image).norm())
    theirs = torch.stack(distances)
    ours = DeepFool().run(net, x, y).distance
    assert ours.median() <= 1.01 * theirs.median()
    assert ours.mean() <= 1.01 * theirs.mean()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_overshoot_is_trimmed_and_the_point_stays_adversarial(
    norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:30], digits[1][:30]
    result = DeepFool(norm=norm, overshoot=0.5).run(net, x, y)
    assert result.success.all()
    for row in range(30):  # alone, in another batch than where it was found
        assert net(result.x_adv[row : row + 1]).argmax() != y[row]
    moved = result.distance > 0
    shorter = x + 0.97 * (result.x_adv - x)
    assert (net(shorter).argmax(1) == y)[moved].float().mean() > 0.9


def test_a_tie_is_left() -> None:
    x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    model = Linear(torch.eye(4)[:2] * 3)
    assert DeepFool().run(model, x, y).success.all()
    assert DeepFool(norm="linf").run(model, x, y).success.all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_succeeds_where_the_box_stops_most_pixels(norm: str) -> None:
    # The steep pixels are used up at once; what is left to the flat ones takes ever smaller plain steps.
    weight = torch.stack([torch.zeros(40), torch.cat([torch.full((20,), 5.0), torch.full((20,), 0.2)])]).double()
    x, y = torch.cat([torch.full((1, 20), 0.99), torch.zeros(1, 20)], 1).double(), torch.tensor([0])
    model = Linear(weight, torch.tensor([0.0, -102.0], dtype=torch.float64))
    result = DeepFool(norm=norm).run(model, x, y)
    assert result.success.all()
    assert result.backwards.item() < 20


def test_memory_of_many_classes() -> None:
    sizes = []

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(300, 48))

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                sizes.append(0)
                x.register_hook(lambda g: sizes.__setitem__(-1, sizes[-1] + 1))
            return x.flatten(1) @ self.weight.T

    model = Wide()
    with torch.no_grad():  # a net whose boundaries are all equally far, but for the last one, hard to tell apart
        model.weight.mul_(1e-3)
        model.weight[0] += 1
    x = torch.rand(2, 3, 4, 4)
    result = DeepFool(candidates=None, steps=1).run(model, x, torch.zeros(2, dtype=torch.int64))
    assert result.backwards.tolist() == [299, 299]
    assert len(sizes) > 30
    assert max(sizes) <= 9  # gradients held at a time


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_defense_that_is_robust_where_its_attack_view_is_broken(norm: str) -> None:
    weight = torch.stack([torch.zeros(9), torch.ones(9)])
    real, view = (Linear(weight, torch.tensor([0.0, bias])) for bias in (-8.0, -4.6))
    result = DeepFool(norm=norm).run(Defended(real, view), torch.full((2, 9), 0.5), torch.zeros(2, dtype=torch.int64))
    assert result.success.all()
    assert (result.backwards < 20).all()
