import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustlit.attacks.draws import Draws
from robustlit.threat import Ball, check_eps, check_grid, check_images, check_norm, distance

NORMS = ("linf", "l2")
SHAPES = [(5, 12), (1, 1, 6, 6), (8, 3, 5, 4)]


def _images(*shape: int) -> Tensor:
    """Random images whose values crowd at both ends of the box, as those of digits do."""
    return (torch.rand(shape) * 1.6 - 0.3).clamp(0, 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reach", [0.01, 0.3, 10.0])
def test_a_projected_point_lies_in_ball_and_box(norm: str, shape: tuple[int, ...], reach: float) -> None:
    x, eps = _images(*shape), torch.linspace(0.05, 0.9, shape[0])
    z = Ball(x, eps, norm).project(x + reach * torch.randn(shape))
    assert (distance(z, x, norm) <= eps + 1e-6).all()
    assert z.min() >= 0
    assert z.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_stay_where_they_are(norm: str) -> None:
    x, eps = torch.full((4, 9), 0.5), torch.tensor([0.1, 0.2, 0.3, 0.4])
    z = x + (eps / 4).unsqueeze(1) * torch.randn(4, 9).sign()  # at 1/4 of the L-inf radius, 3/4 of the L2 radius
    torch.testing.assert_close(Ball(x, eps, norm).project(z), z)


def test_projection_on_the_l2_ball_is_the_nearest_point() -> None:
    x, eps = torch.full((1, 6), 0.5), torch.tensor([0.2])
    z = torch.rand(1, 6)
    nearest = Ball(x, eps, "l2").project(z)
    others = x + 0.2 * torch.nn.functional.normalize(torch.randn(500, 6), dim=1)
    assert ((z - nearest).norm() <= (z - others).norm(dim=1) + 1e-6).all()


def test_projection_on_the_linf_ball_is_the_nearest_point() -> None:
    x = torch.tensor([[0.5, 0.1, 0.95, 0.5]])
    z = torch.tensor([[0.9, -0.4, 1.3, 0.45]])
    expected = torch.tensor([[0.7, 0.0, 1.0, 0.45]])
    torch.testing.assert_close(Ball(x, torch.tensor([0.2]), "linf").project(z), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_a_radius_of_zero_leaves_the_example_alone(norm: str) -> None:
    x = _images(3, 1, 4, 4)
    ball = Ball(x, torch.zeros(3), norm)
    assert torch.equal(ball.project(torch.rand_like(x)), x)
    assert torch.equal(ball.step(x, torch.randn_like(x), torch.zeros(3)), x)
    assert torch.equal(ball.random_point(Draws(0, torch.arange(3))), x)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_climbs_a_linear_loss_the_most(norm: str) -> None:
    # Steps of 0.05 from the centre stay inside, so each is its size long and no other is steeper.
    x, size = torch.full((3, 8), 0.5), torch.tensor([0.05, 0.02, 0.01])
    gradient = torch.randn(3, 8)
    moved = Ball(x, torch.full((3,), 0.3), norm).step(x.clone(), gradient.clone(), size) - x
    torch.testing.assert_close(moved.norm(p=math.inf if norm == "linf" else 2, dim=1), size)
    rises = (moved * gradient).sum(1)
    steps = torch.randn(400, 8)
    steps = steps.sign() if norm == "linf" else torch.nn.functional.normalize(steps, dim=1)
    assert (rises.unsqueeze(1) >= size.unsqueeze(1) * (gradient @ steps.T) - 1e-6).all()
    assert (rises > 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("power", [-36, -30, -22, -12, 12, 22, 30])
def test_only_the_direction_of_a_gradient_counts(norm: str, power: int) -> None:
    # In float32 the squares of 1e-23 underflow, those of 1e20 overflow: neither is a reason to stand still.
    x = torch.full((4, 1, 3, 3), 0.5)
    gradient, size = torch.randn(4, 1, 3, 3).double(), torch.full((4,), 0.1)
    ball = Ball(x, torch.full((4,), 0.3), norm)
    expected = ball.step(x, gradient.float(), size)
    torch.testing.assert_close(ball.step(x, (gradient * 10.0**power).float(), size), expected, atol=1e-5, rtol=0)
    assert not torch.equal(expected, x)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing_and_spoils_no_neighbour(norm: str) -> None:
    x = torch.full((3, 5), 0.5)
    gradient = torch.randn(3, 5)
    gradient[1] = 0
    moved = Ball(x, torch.full((3,), 0.3), norm).step(x, gradient, torch.full((3,), 0.1)) - x
    assert torch.equal(moved[1], torch.zeros(5))
    assert (moved[[0, 2]].abs().amax(1) > 0.01).all()


@pytest.mark.parametrize("norm", NORMS)
def test_select_keeps_each_example_with_its_own_radius(norm: str) -> None:
    x, eps = _images(4, 6), torch.tensor([0.1, 0.2, 0.3, 0.4])
    z = torch.rand(4, 6) * 3 - 1
    whole = Ball(x, eps, norm).project(z)
    for keep in (torch.tensor([3, 1]), torch.tensor([False, True, False, True])):
        assert torch.equal(Ball(x, eps, norm).select(keep).project(z[keep]), whole[keep])


@pytest.mark.parametrize("dimensions", [2, 10])
def test_random_points_fill_the_l2_ball_evenly(dimensions: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    n, eps = 4000, 0.4
    x = torch.full((n, dimensions), 0.5)
    delta = Ball(x, torch.full((n,), eps), "l2").random_point(Draws(11, torch.arange(n))) - x
    radius = delta.norm(dim=1) / eps
    assert radius.max() <= 1 + 1e-6
    # Uniform in the ball: the share within radius r is r^d; and no direction is favoured.
    assert stats.kstest(radius.numpy() ** dimensions, "uniform").pvalue > 1e-3
    mean, spread = delta.mean(0), delta.std(0)
    assert mean.abs().max() < 4 * eps / math.sqrt(n * (dimensions + 2))
    torch.testing.assert_close(spread, torch.full_like(spread, eps / math.sqrt(dimensions + 2)), rtol=0.06, atol=0)


def test_random_points_fill_the_linf_ball_evenly() -> None:
    stats = pytest.importorskip("scipy.stats")
    n, eps = 3000, torch.tensor([0.1, 0.4]).repeat(1500)
    x = torch.full((n, 3), 0.5)
    delta = (Ball(x, eps, "linf").random_point(Draws(11, torch.arange(n))) - x) / eps.unsqueeze(1)
    for pixel in range(3):
        assert stats.kstest(delta[:, pixel].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert torch.corrcoef(delta.T).triu(1).abs().max() < 0.08


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_of_digits_lie_in_ball_and_box(norm: str, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:50]
    eps = torch.linspace(0.05, 0.9, 50) * (1 if norm == "linf" else 8)
    z = Ball(x, eps, norm).random_point(Draws(5, torch.arange(50)))
    assert (distance(z, x, norm) <= eps + 1e-6).all()
    assert z.min() >= 0
    assert z.max() <= 1


def test_distances() -> None:
    x = torch.zeros(2, 1, 2, 2)
    z = torch.tensor([[[[0.3, -0.4], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 1.0]]]])
    expected = {"l0": [2.0, 1.0], "l1": [0.7, 1.0], "l2": [0.5, 1.0], "linf": [0.4, 1.0]}
    for norm, values in expected.items():
        torch.testing.assert_close(distance(z, x, norm), torch.tensor(values))
    with pytest.raises(ValueError, match="l0, l1, l2, linf, got 'l3'"):
        distance(z, x, "l3")


@pytest.mark.parametrize(
    ("eps", "norm", "parts"),
    [
        (0, "linf", ["eps", "positive", "got 0"]),
        (-0.1, "linf", ["positive", "got -0.1"]),
        (-1, "l2", ["positive", "got -1"]),
        (8, "linf", ["(0, 1]", "got 8", "8/255"]),
        (1.5, "linf", ["(0, 1]", "got 1.5"]),
        (float("nan"), "linf", ["finite", "nan"]),
        (float("inf"), "l2", ["finite", "inf"]),
        ("8/255", "linf", ["number", "'8/255'"]),
        (True, "linf", ["number", "True"]),
        (None, "l2", ["number", "None"]),
        ([0.1, 0.2], "linf", ["number", "[0.1, 0.2]"]),
        (torch.tensor([0.1, 0.2]), "linf", ["number", "one value per example", "eps=tensor"]),
    ],
)
def test_an_unusable_budget_names_value_rule_and_way_out(eps: object, norm: str, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        check_eps(eps, norm)
    for part in parts:
        assert part in str(caught.value)


def test_usable_budgets_become_floats() -> None:
    assert check_eps(1, "linf") == 1.0
    assert isinstance(check_eps(1, "linf"), float)
    assert check_eps(8, "l2") == 8.0  # an L2 budget may exceed 1
    with pytest.raises(ValueError, match=r"^grid\.l2 must"):
        check_eps(-1, "l2", name="grid.l2")


@pytest.mark.parametrize("norm", ["l1", "Linf", "inf", 2, None])
def test_an_unknown_norm_lists_the_known_ones(norm: str) -> None:
    with pytest.raises(ValueError, match=f"linf, l2, got {norm!r}"):
        check_norm(norm)
    with pytest.raises(ValueError, match="linf, l2"):
        Ball(torch.zeros(1, 2), torch.zeros(1), norm)


@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (torch.full((2, 4), 1.25), ["[0, 1]", "1.25", "normalised", "Normalize"]),
        (torch.tensor([[0.2, -0.42]]), ["[0, 1]", "-0.42", "Normalize"]),
        (torch.tensor([[0.0, 254.0]]), ["[0, 1]", "[0, 254]", "grey levels of 255: give x / 255"]),
        (torch.tensor([[0.2, float("inf")]]), ["[0, 1]", "inf"]),
        (torch.tensor([[0.2, float("nan")], [2.0, 0.1]]), ["finite", "NaN", "loader"]),
        (torch.zeros(2, 4, dtype=torch.uint8), ["float32", "torch.uint8", "/ 255"]),
        (torch.zeros(2, 4, dtype=torch.bfloat16), ["float32", "torch.bfloat16"]),
        (torch.zeros(0, 1, 4, 4), ["empty"]),
        (torch.zeros(4), ["(B, C, H, W)", "(4,)"]),
    ],
)
def test_bad_images_are_refused(x: Tensor, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"must|empty|half") as caught:
        check_images(x)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_good_images_pass_without_a_word() -> None:
    check_images(torch.tensor([[0.0, 1.0]]))
    check_images(torch.rand(2, 3, 4, 4, dtype=torch.float64))
    check_images(torch.rand(2, 3, requires_grad=True))


@pytest.mark.parametrize(
    "given", [0.25, [0.25], (0.25,), torch.tensor(0.25), torch.tensor([0.25]), np.array([0.25]), [torch.tensor(0.25)]]
)
def test_a_grid_takes_numbers_lists_arrays_and_tensors(given: Any) -> None:
    assert check_grid({"linf": given}) == {"linf": [0.25]}
    assert check_grid(None) == {}
