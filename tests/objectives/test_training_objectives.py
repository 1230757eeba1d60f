from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD
from robustlit.attacks.ascent import GradientAscent
from robustlit.objectives import AdversarialTraining, Objective, Standard
from robustlit.objectives.objective import Scheduled
from robustlit.threat import distance

ATTACKS = [
    FGSM(eps=0.1, random_start=True, step_size=0.125),
    BIM(eps=0.1, steps=4),
    PGD(eps=0.1, steps=4),
    PGD(eps=1.0, norm="l2", steps=4),
]


class Recorder(nn.Module):
    """Remembers the batch it saw last, and in what modes it saw each."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.net, self.dropout = nn.BatchNorm2d(1), net, nn.Dropout(0.3)
        self.last: Tensor | None = None
        self.flags: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach().clone()
        self.flags.append((self.norm.training, self.dropout.training))
        return self.net(self.dropout(self.norm(x)))


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_standard_is_the_mean_cross_entropy(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    objective: Objective = Standard()
    output = objective(net, x, y)
    assert torch.equal(output["logits"], net(x))
    expected = -net(x).log_softmax(1)[torch.arange(32), y].mean()
    torch.testing.assert_close(output["loss"], expected)
    assert output["loss"].requires_grad
    assert not isinstance(objective, Scheduled)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_adversarial_training_learns_from_points_of_the_ball(
    attack: GradientAscent, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:64], digits[1][:64]
    model = Recorder(net).eval()
    output = AdversarialTraining(attack)(model, x, y)
    seen = model.last
    assert seen is not None
    assert (distance(seen, x, attack.norm) <= attack.eps + 1e-6).all()
    assert seen.min() >= 0
    assert seen.max() <= 1
    with torch.no_grad():
        logits = model(seen)
        clean = F.cross_entropy(model(x), y)
    torch.testing.assert_close(output["logits"], logits)
    torch.testing.assert_close(output["loss"], F.cross_entropy(logits, y))
    assert output["loss"] > 2 * clean
    # It pushes every example up, not only the batch.
    assert (F.cross_entropy(logits, y, reduction="none") >= F.cross_entropy(model(x), y, reduction="none")).all()
    assert torch.equal(x, digits[0][:64])


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_of_the_weights_come_from_the_last_forward_alone(
    attack: GradientAscent, precision: torch.dtype | None, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    # Under autocast the attack and the training forward share a cache of cast weights: cast without a graph, they would
    # leave the weights without a gradient.
    x, y = digits[0][:32], digits[1][:32]
    model = Recorder(net).train()
    model.dropout.p = 0.0
    net.features[0].bias.requires_grad_(False)
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        loss = AdversarialTraining(attack)(model, x, y)["loss"]
    assert all(p.grad is None for p in model.parameters())  # the attack accumulates nothing
    found = _gradients(model, loss)
    assert model.last is not None
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        loss = F.cross_entropy(model(model.last), y)
    expected = _gradients(model, loss)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_an_evaluation_inside_the_training_region_costs_no_gradient(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:16], digits[1][:16]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = _gradients(net, Standard()(net, x, y)["loss"])
        net.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        PGD(eps=0.1, steps=2).run(net, x, y, seed=0)
        found = _gradients(net, Standard()(net, x, y)["loss"])
    assert set(found) == {name for name, _ in net.named_parameters()}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("in_eval_mode", [True, False])
def test_modes_of_the_attack_and_of_the_step(in_eval_mode: bool, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:16], digits[1][:16]
    model = Recorder(net).train()
    AdversarialTraining(PGD(eps=0.1, steps=3), attack_in_eval_mode=in_eval_mode)(model, x, y)
    training = not in_eval_mode
    assert model.flags == [(training, training)] * 3 + [(True, True)]
    assert model.norm.num_batches_tracked.item() == (1 if in_eval_mode else 4)
    model.eval()
    model.flags.clear()
    AdversarialTraining(PGD(eps=0.1, steps=3), attack_in_eval_mode=in_eval_mode)(model, x, y)
    assert model.flags == [(False, False)] * 4


def test_warm_up_raises_the_budget_linearly(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:16], digits[1][:16]
    objective = AdversarialTraining(PGD(eps=0.2, steps=3), warmup=0.25)
    assert isinstance(objective, Scheduled)
    model = Recorder(net).eval()
    for fraction, eps in [(0.0, 0.0), (0.05, 0.04), (0.125, 0.1), (0.25, 0.2), (0.7, 0.2), (1.0, 0.2)]:
        objective.set_progress(fraction)
        assert objective.eps == pytest.approx(eps)
        objective(model, x, y)
        assert model.last is not None
        reached = distance(model.last, x, "linf")
        assert (reached <= eps + 1e-6).all()
        assert (reached >= 0.9 * eps).all()
    objective.set_progress(0.125)  # a resumed run may stand anywhere
    assert objective.eps == pytest.approx(0.1)


def test_without_warm_up_the_budget_is_full_at_once() -> None:
    objective = AdversarialTraining(PGD(eps=0.2))
    assert objective.eps == 0.2
    objective.set_progress(0.0)
    assert objective.eps == 0.2


@pytest.mark.parametrize("warmup", [-0.1, 1, 1.5, float("nan")])
def test_a_warm_up_that_never_ends(warmup: float) -> None:
    with pytest.raises(ValueError, match=rf"warmup .*\[0, 1\), got {warmup}"):
        AdversarialTraining(PGD(eps=0.2), warmup=warmup)


@pytest.mark.parametrize("attack", [None, "pgd", 0.3, PGD, {"eps": 0.3}, nn.Identity()], ids=str)
def test_only_gradient_ascent_maximises(attack: object) -> None:
    with pytest.raises(ValueError, match=f"FGSM, BIM or PGD, got {type(attack).__name__}"):
        AdversarialTraining(attack)


@pytest.mark.parametrize(
    "make", [lambda: None, lambda: AdversarialTraining(PGD(eps=0.15, steps=5))], ids=["std", "adv"]
)
def test_some_steps_lower_the_loss(make: Callable[[], AdversarialTraining | None]) -> None:
    x = torch.rand(64, 1, 6, 6)
    y = (x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2))).long()
    x = (
        x + torch.where(y.bool(), 0.3, -0.3).view(-1, 1, 1, 1) * torch.tensor([1.0] * 3 + [-1.0] * 3).view(6, 1)
    ).clamp(0, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    objective: Objective = make() or Standard()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective(model, x, y)["loss"]
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_restarts_are_refused() -> None:
    with pytest.raises(ValueError, match="restarts must be 1 in training"):
        AdversarialTraining(PGD(eps=0.2, restarts=2))


def test_the_margin_stretches_the_budget(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    objective = AdversarialTraining(PGD(eps=0.15, steps=3), warmup=0.5, margin=4 / 3)
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    for fraction, eps in ((0.25, 0.1), (1.0, 0.2)):
        objective.set_progress(fraction)
        objective(net, *digits)
        assert distance(seen[-1], digits[0], "linf").max().item() == pytest.approx(eps, abs=1e-6)
    with pytest.raises(ValueError, match="margin must be a positive factor"):
        AdversarialTraining(PGD(), margin=0)
    with pytest.raises(ValueError, match=r"eps \* margin must be in \(0, 1\]"):
        AdversarialTraining(PGD(eps=0.6), margin=2)
