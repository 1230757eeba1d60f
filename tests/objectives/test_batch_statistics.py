"""Bounds of a net with BatchNorm are, while it trains, those of the net that the batch sees."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.certify import IBP
from robustlit.certify.bounds import logits_of, margins_of
from robustlit.certify.region import Region
from robustlit.models import CNN7
from robustlit.objectives import MTLIBP, SABR, CROWNIBPTraining, IBPTraining
from robustlit.objectives.batch_statistics import logits_and_statistics
from robustlit.objectives.ibp import worst_logits

ATTACK = PGD(0.02, steps=1, random_start=False)


@pytest.fixture
def net() -> CNN7:
    torch.manual_seed(0)
    made = CNN7(image_size=7, width=4, hidden=8)
    with torch.no_grad():  # statistics and factors that are not those at the start
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return made.train()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(12, 1, 7, 7, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10


def test_at_eps_0_the_bounds_are_the_logits_in_training_mode(net: CNN7, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    logits, statistics = logits_and_statistics(copy.deepcopy(net), x, gradient=True)
    assert sorted(statistics) == sorted(name for name, _ in net.named_buffers() if "running" in name)
    loss = F.cross_entropy(worst_logits(net, x, y, 0.0, "linf", statistics)[0], y)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, net(x))
    without = F.cross_entropy(worst_logits(net, x, y, 0.0, "linf")[0], y)
    assert (loss - without).abs() > 0.02
    assert net.training  # as before


def test_a_compiled_net_has_them_too(net: CNN7, batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    compiled = torch.compile(net, backend="eager")
    compiled(x)  # hooks of later calls would not be seen
    logits, statistics = logits_and_statistics(compiled, x, gradient=True)
    expected, found = logits_and_statistics(net, x, gradient=True)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(statistics, found)
    assert len(statistics) == 12


def test_a_net_in_eval_mode_has_its_own_statistics(net: CNN7, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    logits, statistics = logits_and_statistics(net.eval(), x, gradient=False)
    assert not statistics
    assert not logits.requires_grad
    torch.testing.assert_close(worst_logits(net, x, y, 0.0, "linf")[0], logits - logits.gather(1, y.view(-1, 1)))


@pytest.mark.parametrize(
    "objective",
    [IBPTraining(0.02, first_kappa=0), CROWNIBPTraining(0.02, first_kappa=0), MTLIBP(0.02, attack=ATTACK),
     SABR(0.02, attack=ATTACK)],
)  # fmt: skip
def test_gradients_go_through_the_statistics_which_are_updated_once(
    objective: IBPTraining, net: CNN7, batch: tuple[Tensor, Tensor]
) -> None:
    objective.set_progress(0.3)
    objective(net, *batch)["loss"].backward()
    assert int(net.features[1].num_batches_tracked) == 1  # type: ignore[index]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    # A convolution's bias is taken off again by BatchNorm, which only the batch's own mean does.
    assert float(net.features[0].bias.grad.abs().max()) < 1e-4 * float(net.features[0].weight.grad.abs().max())  # type: ignore[index]
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("kind", [IBPTraining, CROWNIBPTraining])
def test_training_certifies_a_net_with_batch_norm(kind: type[IBPTraining], net: CNN7) -> None:
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = (torch.rand(60, 1, 7, 7, generator=draws) * 0.2 + 0.7 * y.view(-1, 1, 1, 1)).clamp(0, 1)
    objective = kind(0.05, warmup=0.5, first_kappa=0.0)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(60):
        objective.set_progress(step / 60)
        optimizer.zero_grad()
        objective(net, x, y)["loss"].backward()
        optimizer.step()
    assert (IBP(0.05, rounds=1).run(net.eval(), x, y).radius >= 0.05).float().mean() > 0.9


def test_crown_ibp_training_weighs_linear_bounds_and_intervals(net: CNN7, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    net.eval()
    settings = {"warmup": 0.5, "initialise": False, "first_kappa": 0.0, "regularisation": 0.0}
    objective = CROWNIBPTraining(0.02, first_beta=0.9, beta=0.1, **settings)  # type: ignore[arg-type]
    objective.set_progress(0.3)
    share = objective.share
    assert objective.linear == pytest.approx(0.9 - 0.8 * share)
    eps = 0.02 * share
    found = objective(net, x, y)["loss"]
    worst, _ = worst_logits(net, x, y, eps, "linf", linear=0.9 - 0.8 * share)
    torch.testing.assert_close(found, F.cross_entropy(worst, y))
    tape, node = logits_of(net, Region(x, x.new_full((len(x),), eps), "linf"))
    bounds = [margins_of(tape, node, y, through_activations=through) for through in (True, False)]
    weight = objective.linear
    torch.testing.assert_close(found, F.cross_entropy(-(weight * bounds[0] + (1 - weight) * bounds[1]), y))
    intervals = IBPTraining(0.02, **settings)  # type: ignore[arg-type]
    without = CROWNIBPTraining(0.02, first_beta=0.0, beta=0.0, **settings)  # type: ignore[arg-type]
    for each in (intervals, without):
        each.set_progress(0.3)
    torch.testing.assert_close(intervals(net, x, y)["loss"], without(net, x, y)["loss"])
    assert found < intervals(net, x, y)["loss"]  # linear bounds are the tighter ones here
    x_adv = PGD(eps, steps=5)(net, x, y, seed=0)
    assert F.cross_entropy(worst_logits(net, x, y, eps, "linf", linear=1.0)[0], y) >= F.cross_entropy(net(x_adv), y)


@pytest.mark.parametrize("name", ["first_beta", "beta"])
def test_a_weight_beyond_1_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be the weight of the linear bounds in \\[0, 1\\], got 1.5"):
        CROWNIBPTraining(0.1, **{name: 1.5})
