"""Square: what its patches do, and that it breaks models that hide their gradients."""

from __future__ import annotations

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import Square
from robustlit.attacks.draws import Draws
from robustlit.attacks.square import _bump, _bump_shapes, _bumps, _patch, _stripes, _window
from robustlit.threat import Ball

EPS = 0.3


def _ball(norm: str, n: int = 6, channels: int = 1, side: int = 12, eps: float = EPS) -> tuple[Ball, Draws]:
    x = torch.rand(n, channels, side, side, dtype=torch.float64)
    return Ball(x, torch.full((n,), eps, dtype=torch.float64), norm), Draws(0, torch.arange(n))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_goes_to_the_end_of_the_ball_and_always_changes_something(channels: int) -> None:
    ball, draws = _ball("linf", n=40, channels=channels)
    z = _stripes(ball, draws)
    for side in (12, 5, 1):
        for _ in range(20):
            new = _patch(z, ball, side, draws.uniform(z.new_empty(len(z), 2 + channels)))
            changed = (new != z).flatten(1).any(1)
            # A pixel whose ball is cut on one side has two different ends all the same.
            assert changed.all()
            ends = (new - ball.project(ball.x - EPS)).abs().minimum((new - ball.project(ball.x + EPS)).abs())
            assert ends.max() < 1e-12
            rows = (new != z).any(1).any(2)
            assert (rows.sum(1) <= side).all()
            z = new


def test_patches_cover_every_pixel_and_differ_between_examples() -> None:
    z = torch.zeros(4000, 1, 7, 9)
    images, channels, down, across = _window(z, 3, Draws(1, torch.arange(4000)).uniform(z.new_empty(4000, 2)))
    z[images, channels, down, across] = 1
    assert (z.sum((1, 2, 3)) == 9).all()
    assert (z.sum(0) > 0).all()  # the last row and column too
    assert (z[0] != z[1]).any()
    whole = _window(z, 7, torch.full((4000, 2), 0.999))
    assert int(whole[2].max()) == 6
    assert int(whole[3].max()) == 8


def test_bumps_have_length_eps_or_less_and_both_signs() -> None:
    for side in (3, 4, 5, 9):
        shapes = _bump_shapes(side, torch.zeros(1, dtype=torch.float64))
        assert shapes.shape == (2, side, side)
        torch.testing.assert_close(torch.linalg.vector_norm(shapes, dim=(1, 2)), torch.ones(2, dtype=torch.float64))
        assert shapes.min() < 0 < shapes.max()
        assert torch.equal(shapes[0].T, shapes[1])
    ball, draws = _ball("l2", channels=3, eps=0.5)
    z = _bumps(ball, draws)
    moved = []
    for side in (11, 5, 3, 1):
        for _ in range(10):
            new = _bump(z, ball, side, draws.uniform(z.new_empty(len(z), 5 + z.shape[1])))
            moved.append((new - z).flatten(1).abs().amax(1) > 0)
            z = new
            length = torch.linalg.vector_norm((z - ball.x).flatten(1), dim=1)
            assert (length <= 0.5 + 1e-9).all()
            assert (length > 0.3).all()  # the box takes some of it
            assert z.min() >= 0
            assert z.max() <= 1
    assert torch.cat(moved).float().mean() > 0.9  # not where both windows are empty and the budget is used up


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 3.0)])
def test_it_breaks_a_model_that_hides_its_gradients(
    norm: str, eps: float, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:30], digits[1][:30]
    result = Square(eps=eps, norm=norm, queries=300).run(Function(lambda z: net((z * 8).round() / 8)), x, y, seed=0)
    assert result.success.float().mean() > 0.8
    assert (result.backwards == 0).all()
    assert (result.distance <= eps + 1e-6).all()
    assert (result.forwards <= 302).all()  # the clean image and the final judgement beside the queries


def test_an_unbroken_example_gets_all_its_queries_and_keeps_its_best(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:10], digits[1][:10]
    margin = lambda z: net(z).gather(1, y[:, None]).squeeze(1) - net(z).scatter(1, y[:, None], -1e9).amax(1)  # noqa: E731
    few = Square(eps=0.03, queries=5, restarts=2).run(net, x, y, seed=0)
    many = Square(eps=0.03, queries=80).run(net, x, y, seed=0)
    assert (few.forwards[~few.success] == 12).all()
    with torch.no_grad():
        robust = ~few.success & ~many.success
        assert robust.sum() > 5
        assert (margin(many.x_adv)[robust] < margin(few.x_adv)[robust]).float().mean() > 0.7
        assert (margin(few.x_adv)[robust] < margin(x)[robust]).all()


def test_an_example_that_is_not_an_image_is_refused() -> None:
    model, x = nn.Linear(12, 3), torch.rand(2, 12)
    with pytest.raises(ValueError, match=r"images \(B, C, H, W\), got shape \(2, 12\)"):
        Square(eps=0.1)(model, x, model(x).argmax(1))
