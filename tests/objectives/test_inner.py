"""What the adversarial objectives share: the budget of a step, the modes of the net, gradients of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD
from robustlit.attacks.ascent import GradientAscent
from robustlit.objectives import MART, TRADES, AdversarialTraining, Objective, Standard
from robustlit.objectives.inner import divergence
from robustlit.objectives.objective import MinMax, Scheduled
from robustlit.threat import distance

ATTACK = PGD(eps=0.1, steps=4)
ATTACKS = [
    FGSM(eps=0.1, random_start=True, step_size=0.125),
    BIM(eps=0.1, steps=4),
    ATTACK,
    PGD(eps=1.0, norm="l2", steps=4),
]
MAKE: dict[str, Callable[..., Any]] = {"adversarial": AdversarialTraining, "trades": TRADES, "mart": MART}
FORWARDS = {"adversarial": 1, "trades": 2, "mart": 2}  # of the training step, after those of the attack
each = pytest.mark.parametrize("name", MAKE)


class Recorder(nn.Module):
    """A net with BatchNorm and dropout that records its modes and inputs."""

    def __init__(self, net: nn.Module, dropout: float = 0.3) -> None:
        super().__init__()
        self.norm, self.net, self.dropout = nn.BatchNorm2d(1), net, nn.Dropout(dropout)
        self.modes: list[tuple[bool, bool]] = []
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach().clone())
        self.modes.append((self.norm.training, self.dropout.training))
        return self.net(self.dropout(self.norm(x)))


@each
def test_the_budget_rises_to_the_scaled_eps(name: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:16], digits[1][:16]
    objective = MAKE[name](PGD(eps=0.15, steps=3), warmup=0.5, eps_scale=4 / 3)
    assert isinstance(objective, Scheduled)
    assert isinstance(objective, MinMax)
    for fraction, eps in ((0.0, 0.0), (0.25, 0.1), (0.5, 0.2), (1.0, 0.2), (0.125, 0.05)):  # a resumed run starts there
        objective.set_progress(fraction)
        assert objective.eps == pytest.approx(eps)
        reached = distance(objective.worst_inputs(net, x, y), x, "linf")
        assert (reached <= eps + 1e-6).all()
        assert (reached >= 0.8 * eps).all()


@each
def test_without_warm_up_the_budget_is_full_at_once(name: str) -> None:
    objective = MAKE[name](PGD(eps=0.2))
    assert objective.eps == 0.2
    objective.set_progress(0.0)
    assert objective.eps == 0.2


@each
def test_margin_is_the_old_name_of_eps_scale(name: str) -> None:
    with pytest.warns(DeprecationWarning, match="margin is now eps_scale"):
        old = MAKE[name](ATTACK, margin=1.5)
    assert old == MAKE[name](ATTACK, eps_scale=1.5)
    assert old.eps == pytest.approx(0.15)


@each
@pytest.mark.parametrize("in_eval_mode", [True, False])
def test_the_attack_is_in_eval_mode_and_averages_move_only_in_training(
    name: str, in_eval_mode: bool, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:16], digits[1][:16]
    model, objective = Recorder(net).train(), MAKE[name](ATTACK, attack_in_eval_mode=in_eval_mode)
    objective(model, x, y)
    passes, training = len(model.modes) - FORWARDS[name], not in_eval_mode
    assert passes >= 4
    assert model.modes == [(training, training)] * passes + [(True, True)] * FORWARDS[name]
    assert model.norm.num_batches_tracked == FORWARDS[name] + (passes if training else 0)
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    objective(model, x, y)
    assert not any(mode for pair in model.modes[passes + FORWARDS[name] :] for mode in pair)


@each
def test_every_weight_learns_under_autocast(name: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    # Autocast keeps cast weights: those cast without a graph would cut the weights off from the loss.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MAKE[name](ATTACK)(net.train(), digits[0][:16], digits[1][:16])["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_of_the_weights_come_from_the_last_forward_alone(
    attack: GradientAscent, precision: torch.dtype | None, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:32], digits[1][:32]
    model = Recorder(net, dropout=0.0).train()
    net.features[0].bias.requires_grad_(False)
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        loss = AdversarialTraining(attack)(model, x, y)["loss"]
    assert all(p.grad is None for p in model.parameters())  # the attack accumulates nothing
    found = gradients(model, loss)
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        loss = nn.functional.cross_entropy(model(model.inputs[-1]), y)
    expected = gradients(model, loss)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_an_evaluation_within_a_training_step_keeps_its_gradients(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:16], digits[1][:16]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients(net, Standard()(net, x, y)["loss"])
        net.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        PGD(eps=0.1, steps=2).run(net, x, y, seed=0)
        found = gradients(net, Standard()(net, x, y)["loss"])
    assert set(found) == {name for name, _ in net.named_parameters()}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


def test_examples_do_not_depend_on_batch_mates(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net, x = net.double(), digits[0][:8].double()
    inner = AdversarialTraining(PGD(eps=1.0, norm="l2", steps=3, random_start=False))
    clean = net(x + 0.01).detach()

    def maximised(rows: slice) -> Tensor:
        return inner.maximise(net, x[rows], lambda logits: divergence(clean[rows], logits))

    together = maximised(slice(0, 8))
    assert (distance(together, x, "l2") <= 1 + 1e-5).all()
    torch.testing.assert_close(together, torch.cat([maximised(slice(i, i + 1)) for i in range(8)]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdversarialTraining(ATTACK, warmup=-0.1), r"warmup .*\[0, 1\), got -0.1"),
        (lambda: AdversarialTraining(ATTACK, warmup=1), r"warmup .*\[0, 1\), got 1"),
        (lambda: AdversarialTraining(ATTACK, warmup=float("nan")), r"warmup .*\[0, 1\), got nan"),
        (lambda: AdversarialTraining(ATTACK, eps_scale=0), "eps_scale must be positive and finite, got 0"),
        (lambda: AdversarialTraining(PGD(eps=0.6), eps_scale=2), r"eps \* eps_scale must be in \(0, 1\]"),
        (lambda: AdversarialTraining(PGD(restarts=2)), "restarts must be 1 in training"),
        (lambda: AdversarialTraining(PGD), "FGSM, BIM, MIM or PGD, got ABCMeta"),
        (lambda: TRADES("pgd"), "FGSM, BIM, MIM or PGD, got str"),
        (lambda: TRADES(ATTACK, beta=0), "beta must be positive and finite, got 0"),
        (lambda: TRADES(ATTACK, beta=float("inf")), "beta must be positive and finite, got inf"),
        (lambda: TRADES(ATTACK, start_noise=-1e-3), "start_noise must be at least 0"),
        (lambda: MART(ATTACK, weight=-1), "weight must be at least 0 and finite, got -1"),
        (lambda: MART(None), "FGSM, BIM, MIM or PGD, got NoneType"),
    ],
)
def test_bad_arguments(make: Callable[[], Objective], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
