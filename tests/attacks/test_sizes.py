"""Every attack on linear models of 28 to 224 pixels a side, 1 and 3 channels, 2 to 1 000 classes."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn

from robustlit.attacks import BudgetAttack

CONFIDENCE = 200.0  # margin of the clean image in logits: the log odds then follow the nearest class alone
VALUES = 8  # that JSMA has to change
SPAN = 16  # dimensions that the rows of a model span
EXCERPT = [(32, 3, 100)]
CORNERS = [(28, 1, 2), (64, 1, 1000), (224, 3, 10)]
MATRIX = list(itertools.product((28, 32, 64, 224), (1, 3), (2, 10, 100, 1000)))
# L2 distances to the boundary, from far below the step of any constant to that of a robust net.
SLOWLY = {"square": 2.5, "square-l2": 12.0}  # random patches: multiples of the least eps that they need
FAR = {"tiny": 0.01, "half": 0.5, "far": 5.0}


class Facets(nn.Module):
    """A linear model whose class 0 is bounded by one plane for each other class, the nearest for class 1.

    The logits of class k lead class 0's by slope * (w_k (x - 0.5) - far_k), with |w_k| = 1 in L2; far_1 is the least
    by a fifth. A function of x that all logits share gives class 0 a gradient of its own and changes no lead.
    """

    def __init__(self, size: int, channels: int, classes: int, far: float, smooth: bool) -> None:
        super().__init__()
        if smooth:  # what patches find: coarse blocks
            basis = torch.randn(SPAN, channels, 2, 2)
            basis = nn.functional.interpolate(basis, (size, size)).flatten(1)
        else:
            basis = torch.randn(SPAN, channels * size * size)
        mix = torch.randn(classes - 1, SPAN)
        mix = mix / (mix @ (basis @ basis.T) * mix).sum(1, keepdim=True).sqrt()
        self.plane = mix[0] @ basis  # (D,) w_1
        self.register_buffer("basis", basis)
        self.register_buffer("mix", torch.cat([torch.zeros(1, SPAN), mix]) - mix[0] / 2)
        self.register_buffer("far", torch.cat([torch.zeros(1), 1.2 + 1.8 * torch.rand(classes - 1)]))
        self.far[1] = 1.0
        self.set_distance(far)

    def set_distance(self, far: float) -> None:
        """Put the plane of class 1 at a distance of `far` from grey."""
        self.scale, self.slope = far, CONFIDENCE / far

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * ((x - 0.5).flatten(1) @ self.basis.T @ self.mix.T - self.scale * self.far)


def least(case: Case, model: Facets, x: Tensor) -> Tensor:
    """Return the distance (B,) of class 1 in the attack's norm, the least but for L0, where it sets the model's."""
    gains = ((1 - x.flatten(1)) * model.plane).sort(1, descending=True).values  # of painting a value white
    if case.attack.norm == "l0":
        model.set_distance(float(gains[:, :VALUES].sum(1).min()) * 0.98 - 0.01)
        return torch.full((len(x),), float(VALUES))
    lead = model.scale - (x - 0.5).flatten(1) @ model.plane
    return lead / (model.plane.norm(p=1) if case.attack.norm == "linf" else 1)


def expect_the_optimum(case: Case, size: int, channels: int, classes: int, far: float) -> None:
    torch.manual_seed(0)
    model = Facets(size, channels, classes, far, smooth=case.kind == "Square")
    x = 0.5 + (torch.rand(2, channels, size, size) - 0.5) * 0.02 * min(far, 1)
    y = torch.zeros(2, dtype=torch.int64)
    best = least(case, model, x)
    attack = case.kind_of_attack(norm=case.attack.norm, **case.thorough)
    near = SLOWLY.get(str(case), 1.05)
    if isinstance(attack, BudgetAttack):
        result = attack.run(model, x, y, seed=0, eps=best * near)
    else:
        result = attack.run(model, x, y, seed=0)
        assert (result.distance <= best * near).all(), (result.distance / best).tolist()
    assert result.success.all()
    if case.attack.norm != "l0":  # there another class may be nearer than the one that is nearest in L2
        assert (result.distance >= best * 0.999).all()
    for image, prediction in zip(result.x_adv, result.prediction, strict=True):
        assert model(image[None]).argmax() == prediction  # alone, and in float64
        assert model.double()(image[None].double()).argmax() == prediction
        model.float()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("size", "channels", "classes"), EXCERPT)
def test_the_optimum_is_found(case: Case, size: int, channels: int, classes: int) -> None:
    expect_the_optimum(case, size, channels, classes, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("size", "channels", "classes"), CORNERS)
def test_the_optimum_is_found_at_the_corners(case: Case, size: int, channels: int, classes: int) -> None:
    expect_the_optimum(case, size, channels, classes, 0.5)


@pytest.mark.matrix
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize(("size", "channels", "classes"), MATRIX)
def test_the_optimum_is_found_at_every_size(case: Case, size: int, channels: int, classes: int, far: str) -> None:
    expect_the_optimum(case, size, channels, classes, FAR[far])
