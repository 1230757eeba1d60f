"""Adversarial weight perturbation against the algorithm done by hand: move, differentiate, put back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.models import EmbeddingClassifier
from robustlit.objectives import (
    TRADES,
    AdversarialTraining,
    AdversarialWeightPerturbation,
    EmbeddingRegression,
    Standard,
)
from robustlit.objectives.objective import MinMax, Scheduled
from robustlit.objectives.weight_perturbation import worst_moves

AWP = AdversarialWeightPerturbation
STILL = PGD(eps=0.1, steps=2, random_start=False)


def _by_hand(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, gamma: float) -> dict[str, Tensor]:
    """Gradients for the unmoved weights: those of the cross-entropy at weights moved in place, then put back."""
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x_adv), y).backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                assert parameter.grad is not None
                parameter += gamma * parameter.norm() * parameter.grad / parameter.grad.norm()
    twin.zero_grad()
    F.cross_entropy(twin(x_adv), y).backward()
    return {name: p.grad.clone() for name, p in twin.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("gamma", [0.01, 0.1])
def test_it_is_the_gradient_at_the_moved_weights(gamma: float, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    before = copy.deepcopy(net.state_dict())
    objective = AdversarialTraining(STILL)
    expected = _by_hand(net, x, objective.worst_inputs(net, x, y), y, gamma)
    output = AWP(objective, gamma)(net, x, y)
    assert all(p.grad is None for p in net.parameters())  # nothing is accumulated on the way
    output["loss"].backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)
        assert torch.equal(parameter, before[name])
    assert output["loss"] > objective(net, x, y)["loss"]


def test_each_layer_moves_by_gamma_of_its_norm_uphill(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    net.features[0].weight.requires_grad_(False)
    moves = worst_moves(net, lambda model: Standard()(model, x, y), 0.02)
    weights = dict(net.named_parameters())
    assert set(moves) == {name for name, p in weights.items() if p.ndim > 1 and p.requires_grad}
    for name, move in moves.items():
        torch.testing.assert_close(move.norm(), 0.02 * weights[name].norm())
        assert not move.requires_grad


class Counted(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(1), net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))


def test_batch_norm_sees_each_batch_once(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    model, plain = Counted(net).train(), Counted(copy.deepcopy(net)).train()
    AWP(AdversarialTraining(STILL), 0.05)(model, x, y)["loss"].backward()
    AdversarialTraining(STILL)(plain, x, y)
    assert model.norm.num_batches_tracked.item() == 1
    torch.testing.assert_close(model.norm.running_mean, plain.norm.running_mean)
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.abs().sum() > 0
    assert model.norm.weight.grad is not None  # not moved, but trained


def test_the_inputs_are_attacked_once_a_step(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    AWP(AdversarialTraining(PGD(eps=0.1, steps=3)))(net, *digits)
    assert len(calls) == 3 + 2
    assert isinstance(TRADES(STILL), MinMax)
    assert not isinstance(Standard(), MinMax)


def test_it_works_with_any_objective(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    sharp = AWP(Standard(), 0.05)(net, x, y)
    assert sharp["loss"] > Standard()(net, x, y)["loss"]
    model = EmbeddingClassifier(net)  # its embed(x) must see the moved weights too
    plain = EmbeddingRegression()(model, x, y)["loss"]
    moved = AWP(EmbeddingRegression(), 0.05)(model, x, y)["loss"]
    assert moved > 1.01 * plain
    moved.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_every_weight_learns_under_autocast(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = AWP(TRADES(STILL))(net.train(), digits[0][:16], digits[1][:16])["loss"]
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_begins_at_its_start_and_passes_progress_on(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    inner = AdversarialTraining(STILL, warmup=0.8)
    objective = AWP(inner, 0.1, start=0.5)
    assert isinstance(objective, Scheduled)
    objective.set_progress(0.4)
    assert inner.eps == pytest.approx(0.05)
    assert torch.equal(objective(net, *digits)["loss"], inner(net, *digits)["loss"])
    objective.set_progress(0.5)
    assert objective(net, *digits)["loss"] > 1.05 * inner(net, *digits)["loss"]


def test_a_net_whose_loss_is_flat_stays_where_it_is() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    nn.init.zeros_(net[1].weight)
    x, y = torch.rand(6, 1, 2, 2), torch.arange(6) % 3
    output = AWP(Standard(), 0.1)(net, x, y)
    assert output["loss"].isfinite()
    output["loss"].backward()
    assert net[1].weight.grad is not None
    assert net[1].weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0}, "gamma must be positive and finite"),
        ({"gamma": float("nan")}, "gamma must be positive and finite"),
        ({"start": 1}, r"start must be a share of the training steps in \[0, 1\), got 1"),
        ({"objective": "trades"}, "objective must be an objective, got 'trades'"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AWP(**{"objective": Standard(), **changes})
