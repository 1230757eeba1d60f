"""IBPTraining, MTLIBP and SABR: the loss is a bound of what attacks reach, and training narrows it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from robustlit.attacks import PGD
from robustlit.attacks.losses import Criterion
from robustlit.certify import IBP
from robustlit.experiment.recipes import recipe_files
from robustlit.models import SmallCNN
from robustlit.objectives import MTLIBP, SABR, CROWNIBPTraining, IBPTraining
from robustlit.objectives.ibp import imbalance, initialise_for_intervals, smooth_rise, worst_logits
from robustlit.threat import distance

if TYPE_CHECKING:
    from robustlit.certify.tape import Tape


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return SmallCNN(image_size=8, hidden=16)


def _batch(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=draws), torch.arange(count) % 10


def proven_loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float, norm: str) -> tuple[torch.Tensor, Tape]:
    worst, tape = worst_logits(net, x, y, eps, norm)
    return F.cross_entropy(worst, y), tape


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_interval_loss_is_above_that_of_every_attack(net: nn.Module, norm: str) -> None:
    x, y = _batch()
    proven, _ = proven_loss(net, x, y, 0.1, norm)
    x_adv = PGD(0.1, norm=norm, steps=5)(net, x, y, seed=0)
    assert proven > F.cross_entropy(net(x_adv), y)


@pytest.mark.parametrize(
    "objective", [IBPTraining(0.1), MTLIBP(0.1, attack=PGD(0.1, steps=1)), SABR(0.1, attack=PGD(0.1, steps=1))]
)
def test_intervals_are_in_float32_whatever_the_precision_of_training(objective: IBPTraining, net: nn.Module) -> None:
    x, y = _batch()
    expected, _ = proven_loss(net, x, y, 0.1, "linf")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, tape = proven_loss(net, x, y, 0.1, "linf")
        loss = objective(net, x, y)["loss"]
    assert found == expected
    assert all(node.low.dtype == torch.float32 for node in tape.nodes if node.low is not None)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_the_training_accuracy_is_the_share_that_is_proven(net: nn.Module, kappa: float) -> None:
    x, y = _batch(64)
    y = net(x).argmax(1)
    objective, calls = IBPTraining(0.004, kappa=kappa), []
    net.register_forward_pre_hook(lambda module, given: calls.append(type(given[0]).__name__))
    right = objective(net, x, y)["logits"].argmax(1) == y
    radius = IBP(0.004, rounds=1).run(net, x, y).radius  # in float64
    assert 0 < int(right.sum()) < 64
    assert torch.equal(right, radius > 0)
    assert ("Tensor" in calls[: 1 + (kappa > 0)]) == (kappa > 0)  # no pass for a loss without weight


def test_eps_kappa_and_the_regularisers_follow_the_schedule(net: nn.Module) -> None:
    x, y = _batch()
    objective = IBPTraining(0.2, warmup=0.5, eps_scale=1.1, kappa=0.25, initialise=False)
    objective.set_progress(0.0)
    clean = F.cross_entropy(net(x), y)
    at_start = objective(net, x, y)["loss"]
    assert at_start >= clean
    IBPTraining.set_progress(objective, 1.0)
    wanted = 0.75 * proven_loss(net, x, y, 0.2 * 1.1, "linf")[0] + 0.25 * clean
    torch.testing.assert_close(objective(net, x, y)["loss"], wanted)
    bounds_alone = IBPTraining(0.2, warmup=0.5, first_kappa=0.0, initialise=False, regularisation=0.0)
    bounds_alone.set_progress(0.25)
    wanted = proven_loss(net, x, y, 0.2 * bounds_alone.share, "linf")[0]
    torch.testing.assert_close(bounds_alone(net, x, y)["loss"], wanted)
    rise = [smooth_rise(k / 100) for k in range(101)]
    assert rise[0] == 0
    assert rise[-1] == pytest.approx(1)
    assert all(a <= b for a, b in pairwise(rise))


def test_half_way_through_the_schedule_the_losses_are_the_formulas(net: nn.Module) -> None:
    x, y = _batch()
    attack, more = PGD(0.1, steps=3, random_start=False), {"regularisation": 0.3, "initialise": False}
    ibp = IBPTraining(0.2, warmup=0.5, eps_scale=1.1, kappa=0.25, **more)
    mtl = MTLIBP(0.2, warmup=0.5, eps_scale=1.1, alpha=0.25, attack=attack, **more)
    for objective in (ibp, mtl):
        objective.set_progress(0.3)  # .6 of the warm-up, where the rise is a line of slope 16 / 13 through (1, 1)
        assert objective.share == pytest.approx(1 - 0.4 * 16 / 13)
    share = ibp.share
    proven, tape = proven_loss(net, x, y, 0.22 * share, "linf")
    rest = 0.3 * (1 - share) * imbalance(tape)
    wanted = 0.75 * share * proven + (1 - 0.75 * share) * F.cross_entropy(net(x), y) + rest
    torch.testing.assert_close(ibp(net, x, y)["loss"], wanted)
    x_adv = attack.maximise(net, x, Criterion(y).log_odds, eps=0.22 * share)
    wanted = 0.25 * proven + 0.75 * F.cross_entropy(net(x_adv), y) + rest
    torch.testing.assert_close(mtl(net, x, y)["loss"], wanted)


def test_the_regularisers_and_the_first_weights_are_those_of_shi_et_al() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    net = nn.Sequential(first, nn.ReLU(), second)
    with torch.no_grad():
        first.weight.copy_(torch.eye(2) * 4)
        first.bias.copy_(torch.tensor([-1.0, -3.0]))
    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    # Middles 1 and -1, surely on and off, in balance; intervals four times as wide: (.5 - 1 / 4) / .5.
    assert float(imbalance(proven_loss(net, x, y, 0.1, "linf")[1]).detach()) == pytest.approx(0.5)
    first.bias.data[1] = -2.4  # the middle -.4: 1 against .4 on average, (.5 - .4) / .5 more
    assert float(imbalance(proven_loss(net, x, y, 0.05, "linf")[1]).detach()) == pytest.approx(0.7)
    wide = nn.Linear(400, 50)
    initialise_for_intervals(wide)
    assert float(wide.weight.detach().std()) == pytest.approx((2 * math.pi) ** 0.5 / 400, rel=0.03)
    assert not wide.bias.any()


def test_the_regularisers_gradient_is_that_of_their_formula(net: nn.Module) -> None:
    x, y = _batch()

    def formula(tape: Tape) -> torch.Tensor:
        first, terms = (tape.region.high - tape.region.low).mean() / 2, []
        for node in (each.inputs[0] for each in tape.nodes if each.op is not None and each.op.is_nonlinear):
            middle, radius = (node.low + node.high) / 2, (node.high - node.low).mean() / 2
            terms.append(F.relu(0.5 - first / radius))
            on, off, mean = node.low > 0, node.high < 0, middle.mean()
            share = [(middle * side).sum().abs() / middle.numel() for side in (on, off)]
            spread = [((middle - mean).square() * side).sum() / middle.numel() for side in (on, off)]
            terms += [F.relu(0.5 - min(pair) / max(pair).clamp_min(1e-12)) for pair in (share, spread)]
        return torch.stack(terms).sum() / (0.5 * len(terms) / 3)

    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)  # wider intervals than the images'
    gradients = []
    for value in (imbalance, formula):
        net.zero_grad()
        found = value(worst_logits(net, x, y, 0.005, "linf")[1])
        found.backward()
        gradients.append(
            torch.cat([found.detach().view(1), *(p.grad.flatten() for p in net.parameters() if p.grad is not None)])
        )
    assert gradients[0].numel() > 1000
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_training_certifies(net: nn.Module) -> None:
    x, y = _batch(10)
    objective = IBPTraining(0.02, warmup=0.5)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(40):
        objective.set_progress(step / 40)
        optimizer.zero_grad()
        objective(net, x, y)["loss"].backward()
        optimizer.step()
    margins = proven_loss(net, x, y, 0.02, "linf")[0]
    assert margins < 0.7  # about 2.3, that of a guess, before


def test_the_first_step_alone_draws_the_weights_alike_in_every_process(net: nn.Module) -> None:
    x, y = _batch(4)
    objective = IBPTraining(0.1)
    objective.set_progress(0.5)
    before = [p.clone() for p in net.parameters()]
    objective(net, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    objective.set_progress(0.0)
    objective(net, x, y)
    torch.manual_seed(1)
    other = SmallCNN(image_size=8, hidden=16)
    initialise_for_intervals(other)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_another_seed_draws_other_first_weights() -> None:
    x, y = _batch(4)
    nets = [SmallCNN(image_size=8, hidden=16) for _ in range(3)]
    for each, seed in zip(nets, (0, 1, 1), strict=True):
        objective = IBPTraining(0.1, seed=seed)
        objective.set_progress(0.0)
        objective(each, x, y)
    first, second, again = (torch.cat([p.flatten() for p in each.parameters()]) for each in nets)
    assert not torch.equal(first, second)
    assert torch.equal(second, again)


@pytest.mark.parametrize("recipe", ["ibp", "ibp_cnn7", "mtl_ibp"])
def test_the_recipes_draw_the_first_weights_by_the_seed_of_the_run(recipe: str) -> None:
    assert OmegaConf.load(recipe_files()[recipe])["objective"]._get_node("seed")._value() == "${seed}"


def test_mtl_ibp_lies_between_its_losses(net: nn.Module) -> None:
    x, y = _batch()
    losses = []
    for alpha in (0.0, 0.5, 1.0):
        objective = MTLIBP(0.1, alpha=alpha, attack=PGD(0.1, steps=3, random_start=False), initialise=False)
        losses.append(objective(net, x, y)["loss"])
    assert losses[0] < losses[2]
    torch.testing.assert_close(losses[1], (losses[0] + losses[2]) / 2)
    with pytest.raises(ValueError, match="attack must be"):
        MTLIBP(0.1, attack=None)
    with pytest.raises(ValueError, match="one norm, got linf and l2"):
        MTLIBP(0.1, norm="l2", attack=PGD(0.1))
    with pytest.raises(ValueError, match="kappa must be"):
        IBPTraining(0.1, kappa=2)
    with pytest.raises(ValueError, match="first_kappa must be"):
        IBPTraining(0.1, first_kappa=-1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sabr_bounds_a_box_within_the_ball_around_an_adversarial_example(net: nn.Module, norm: str) -> None:
    x, y = _batch()
    attack = PGD(0.1, norm=norm, steps=3, random_start=False)
    small = SABR(0.2, norm=norm, subselection=0.25, attack=attack, initialise=False)
    output = small(net, x, y)
    loss = output["loss"]
    centre = attack.maximise(net, x, Criterion(y).log_odds, eps=0.75 * 0.2)
    assert distance(centre, x, norm).max() <= 0.75 * 0.2 + 1e-5
    assert distance(centre, x, norm).max() > 0.7 * 0.2
    torch.testing.assert_close(loss, proven_loss(net, centre, y, 0.25 * 0.2, norm)[0])
    torch.testing.assert_close(F.cross_entropy(output["logits"], y), loss)  # the share that is proven
    assert F.cross_entropy(net(centre), y) < loss < proven_loss(net, x, y, 0.2, norm)[0]
    whole = SABR(0.2, norm=norm, subselection=1, attack=attack, initialise=False)(net, x, y)["loss"]
    torch.testing.assert_close(whole, proven_loss(net, x, y, 0.2, norm)[0])
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError, match="subselection must be"):
        SABR(0.2, norm=norm, subselection=0, attack=attack)


@pytest.mark.parametrize("kind", [IBPTraining, CROWNIBPTraining, MTLIBP, SABR])
def test_settings_are_given_by_name(kind: type) -> None:
    with pytest.raises(TypeError, match="positional"):  # their order has changed before
        kind(0.1, "linf", 0.4)
