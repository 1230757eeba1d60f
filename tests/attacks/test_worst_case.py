"""WorstCase: at least as strong as its parts, with or without gradients, and cheap where nothing can be broken."""

from __future__ import annotations

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import APGD, PGD, WorstCase
from robustlit.attacks.draws import Draws
from robustlit.attacks.worst_case import _PLAN, _Patches, _start
from robustlit.threat import Ball, distance


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.07), ("l2", 0.9)])
@pytest.mark.slow
def test_it_breaks_what_its_rivals_break(norm: str, eps: float, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:60], digits[1][:60]
    mine = WorstCase(eps=eps, norm=norm).run(net, x, y, seed=0)
    assert (distance(mine.x_adv, x, norm) <= eps + 1e-6).all()
    for rival in (PGD(eps=eps, norm=norm), APGD(eps=eps, norm=norm), APGD(eps=eps, norm=norm, loss="dlr")):
        theirs = rival.run(net, x, y, seed=0)
        assert 0 < theirs.success.sum() < 60  # else the comparison says nothing
        assert not (theirs.success & ~mine.success).any()


def test_hidden_gradients_do_not_stop_it(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    model = Function(lambda z: net((z * 8).round() / 8 + 0 * z))  # its gradient is zero
    with pytest.warns(UserWarning, match="zero at every pixel"):
        result, blind = (attack.run(model, x, y, seed=0) for attack in (WorstCase(eps=0.3), PGD(eps=0.3)))
    assert result.success.float().mean() > 0.9
    assert blind.success.float().mean() < 0.7


def split(x: Tensor) -> Tensor:
    """Two classes: images whose mean is bright are out of reach, the others are nearly on the boundary."""
    mean = x.flatten(1).mean(1)
    near, far = 10 * x[:, 0, 0, 0] - 1.51, mean * 10 - 5
    return torch.stack([torch.zeros_like(mean), torch.where(mean > 0.5, -far.abs() - 5, near)], 1)


@pytest.mark.slow
def test_passes_go_where_the_margin_is_nearly_gone() -> None:
    x = torch.cat([torch.full((4, 1, 6, 6), 0.9), torch.full((4, 1, 6, 6), 0.1)])
    result = WorstCase(eps=0.05).run(Function(split), x, torch.zeros(8, dtype=torch.int64), seed=0)
    assert not result.success.any()
    spent = result.forwards + result.backwards
    assert (spent[4:] > 1.5 * spent[:4]).all()
    most = 3 + sum(part.queries if isinstance(part, _Patches) else 2 * part.steps + 1 for part in _PLAN)
    assert (spent <= most).all()


@pytest.mark.parametrize("pattern", ["uniform", "bright", "dark", "corner", "blocks", "columns", "rows", "image"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(5, 3, 6, 7), (5, 12)], ids=str)
def test_starts_lie_in_the_ball_and_the_box(pattern: str, norm: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape) * 0.4 + 0.3
    eps = torch.full((5,), 0.2)
    z = _start(pattern, Ball(x, eps, norm), Draws(0, torch.arange(5)))
    far = distance(z, x, norm)
    if pattern == "image":
        assert torch.equal(z, x)
        return
    torch.testing.assert_close(far, eps, rtol=0, atol=1e-5)  # the ball lies inside the box: all reach its surface
    delta = (z - x) / eps[0]
    if pattern in ("columns", "rows") and len(shape) == 4:
        along = 2 if pattern == "columns" else 3
        assert (delta - delta.select(along, 0).unsqueeze(along)).abs().max() < 1e-5
    if pattern not in ("bright", "dark"):
        assert (delta[0] - delta[1]).abs().max() > 0.01  # each example has its own


def test_more_rounds_never_lose(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:8], digits[1][:8]
    once, twice = (WorstCase(eps=0.02, rounds=n).run(net, x, y, seed=0) for n in (1, 2))
    assert not (once.success & ~twice.success).any()
    robust = ~twice.success
    assert (twice.forwards[robust] > once.forwards[robust]).all()


def tie(x: Tensor) -> Tensor:
    """Two classes that are level where the image is grey; elsewhere the first one wins."""
    apart = (x.flatten(1).mean(1) - 0.5).square()
    return torch.stack([torch.zeros_like(apart), -apart], 1)


@pytest.mark.slow
def test_an_example_on_the_boundary_gets_the_whole_plan() -> None:
    x = torch.full((3, 1, 6, 6), 0.5)
    with pytest.warns(UserWarning, match="zero at every pixel"):  # from the image itself
        result = WorstCase(eps=0.1).run(Function(tie), x, torch.zeros(3, dtype=torch.int64), seed=0)
    assert not result.success.any()
    everything = 3 + sum(part.queries if isinstance(part, _Patches) else 2 * part.steps + 1 for part in _PLAN)
    assert (result.forwards + result.backwards == everything).all()
