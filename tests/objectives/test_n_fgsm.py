"""N-FGSM against its formula: noise of k eps, one step of eps, cut to the box and not to the ball."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import FGSM, PGD
from robustlit.objectives import NFGSM
from robustlit.objectives.objective import MinMax, Scheduled
from robustlit.threat import distance

EPS = 0.05


@pytest.fixture
def grey() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear net, whose gradient has the same signs everywhere, and images far from the box."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    return net, torch.full((32, 1, 8, 8), 0.5), torch.arange(32) % 2


def moves(objective: NFGSM, given: tuple[nn.Module, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The perturbation, and the direction in which the loss rises, of each pixel."""
    net, x, y = given
    torch.manual_seed(1)
    found = objective.worst_inputs(net, x, y)
    difference = net[1].weight[1] - net[1].weight[0]  # type: ignore[index]
    rises = torch.where(y.bool(), -1.0, 1.0).view(-1, 1) * difference.sign()
    return (found - x).flatten(1), rises.detach()


def test_the_step_is_eps_up_the_loss_from_noise_of_twice_the_ball(grey: tuple[nn.Module, Tensor, Tensor]) -> None:
    move, rises = moves(NFGSM(FGSM(eps=EPS)), grey)
    noise = (move - EPS * rises).detach()
    assert noise.abs().max() <= 2 * EPS + 1e-6
    assert noise.abs().max() > 1.9 * EPS
    assert abs(float(noise.mean())) < 0.1 * EPS
    assert float(noise.abs().mean()) == pytest.approx(EPS, rel=0.1)  # uniform
    assert move.abs().max() > 2.8 * EPS  # no projection


def test_without_noise_it_is_fgsm(grey: tuple[nn.Module, Tensor, Tensor]) -> None:
    move, rises = moves(NFGSM(FGSM(eps=EPS, relative_step_size=1.25), noise=0), grey)
    torch.testing.assert_close(move, 1.25 * EPS * rises)


def test_everything_scales_with_eps_and_its_warm_up(grey: tuple[nn.Module, Tensor, Tensor]) -> None:
    whole, _ = moves(NFGSM(FGSM(eps=EPS)), grey)
    objective = NFGSM(FGSM(eps=2 * EPS), warmup=0.5, eps_scale=0.5)
    assert isinstance(objective, Scheduled)
    torch.testing.assert_close(moves(objective, grey)[0], whole)
    objective.set_progress(0.25)
    torch.testing.assert_close(moves(objective, grey)[0], whole / 2)
    objective.set_progress(0)
    assert not moves(objective, grey)[0].any()


def test_in_l2_noise_and_step_are_lengths(grey: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = grey
    found = NFGSM(FGSM(eps=0.5, norm="l2")).worst_inputs(net, x, y)
    lengths = distance(found, x, "l2")
    assert lengths.max() <= 1.5 + 1e-5
    assert lengths.max() > 0.9  # the noise of 64 pixels lies near the surface of its ball, at twice eps


def test_inputs_are_images_and_the_loss_is_their_cross_entropy(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    objective = NFGSM(FGSM(eps=0.3))
    assert isinstance(objective, MinMax)  # so AWP can be put around it
    output = objective(net, x, y)
    assert len(seen) == 2
    assert 0 <= float(seen[-1].min()) <= float(seen[-1].max()) <= 1
    torch.testing.assert_close(output["loss"], F.cross_entropy(net(seen[1]), y))
    assert all(p.grad is None for p in net.parameters())
    smoothed = NFGSM(FGSM(eps=0.3), label_smoothing=0.4).loss_at(net, x, seen[1], y)["loss"]
    torch.testing.assert_close(smoothed, F.cross_entropy(net(seen[1]), y, label_smoothing=0.4))


def test_what_is_no_single_step_is_refused() -> None:
    with pytest.raises(ValueError, match="attack must be FGSM, one step"):
        NFGSM(PGD(eps=EPS, steps=2))
    with pytest.raises(ValueError, match="noise must be at least 0"):
        NFGSM(FGSM(eps=EPS), noise=-1)
    with pytest.raises(ValueError, match="label_smoothing must be a probability"):
        NFGSM(FGSM(eps=EPS), label_smoothing=1)
