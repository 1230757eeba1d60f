"""FAB: its projection, and its restarts."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks.fab import FAB, project_on_plane


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_projection_is_the_nearest_point_of_the_plane_in_the_box(norm: str) -> None:
    points = (torch.rand(300, 30, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    w, inside = torch.randn_like(points), torch.rand_like(points)
    w[:, :3] = 0
    level = (w * inside).sum(1)  # the plane meets the box
    change = project_on_plane(points, w, level, norm)
    torch.testing.assert_close((w * (points + change)).sum(1), level, rtol=0, atol=1e-9)
    assert 0 <= (points + change).min() <= (points + change).max() <= 1
    assert (change[:, :3] == 0).all()
    order = math.inf if norm == "linf" else 2
    mine = torch.linalg.vector_norm(change, order, dim=1)
    # Duality: nothing shorter reaches the plane. The most that w . u can rise at this length, within the box, is enough
    # only at the optimum; for L2 the change must be the clamped multiple of w.
    toward = w * (level - (w * points).sum(1)).sign().unsqueeze(1)
    if norm == "linf":
        shorter = (points + 0.999 * mine.unsqueeze(1) * toward.sign()).clamp(0, 1) - points
        assert ((toward * shorter).sum(1) < (level - (w * points).sum(1)).abs()).all()
    else:
        free = (points + change > 1e-12) & (points + change < 1 - 1e-12) & (toward != 0)
        ratio = torch.where(free, change / toward, math.nan)
        spread = ratio.nan_to_num(nan=-1.0).amax(1) - ratio.nan_to_num(nan=9e9).amin(1)
        assert (spread.abs() < 1e-9).all() or (spread[free.any(1)].abs() < 1e-9).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_out_of_the_box_and_a_plane_without_slope(norm: str) -> None:
    points = torch.rand(2, 5)
    w = torch.tensor([[1.0, -1.0, 2.0, 0.0, 1.0], [0.0] * 5])
    change = project_on_plane(points, w, torch.tensor([100.0, 1.0]), norm)
    torch.testing.assert_close((points + change)[0], torch.where(w[0] > 0, 1.0, torch.where(w[0] < 0, 0.0, points[0])))
    assert (change[1] == 0).all()


def test_restarts_never_lose_and_start_where_the_seed_says(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], net(digits[0][:4]).argmax(1)
    visited: list[Tensor] = []

    def record(z: Tensor) -> Tensor:
        visited.append(z.detach().clone())
        return net(z)

    for norm in ("linf", "l2"):
        one = FAB(norm=norm, steps=5).run(net, x, y, seed=0).distance
        paths = []
        for seed in (0, 0, 1):
            visited.clear()
            two = FAB(norm=norm, steps=5, restarts=2).run(Function(record), x, y, seed=seed).distance
            assert (two <= one * 1.005).all()
            paths.append(torch.stack(visited[:-10]))
        assert torch.equal(paths[0], paths[1])
        assert not torch.equal(paths[0], paths[2])
