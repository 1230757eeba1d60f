"""TRADES and MART against their formulas written out, and the inner attack that they share."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import BIM, PGD
from robustlit.objectives import MART, TRADES, AdversarialTraining, Objective
from robustlit.objectives.inner import InnerAttack, MinMax, divergence
from robustlit.objectives.mart import boosted_cross_entropy
from robustlit.objectives.objective import Scheduled
from robustlit.threat import distance

ATTACK = PGD(eps=0.1, steps=4)
MAKE: dict[str, Callable[..., TRADES | MART]] = {"trades": TRADES, "mart": MART}


class Modes(nn.Module):
    """Remembers in what mode it was called, and its inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(1), net
        self.flags: list[bool] = []
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.flags.append(self.norm.training)
        self.seen.append(x.detach().clone())
        return self.net(self.norm(x))


def test_divergence_is_torchs() -> None:
    clean, attacked = torch.randn(7, 5), torch.randn(7, 5)
    expected = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(divergence(clean, attacked), expected)


def test_trades_by_the_formula(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    objective = TRADES(ATTACK, beta=2.5)
    x_adv = objective.worst_inputs(net, x, y)
    assert (distance(x_adv, x, "linf") <= 0.1 + 1e-6).all()
    output = objective.loss_at(net, x, x_adv, y)
    p, log_q = net(x).softmax(1), net(x_adv).log_softmax(1)
    expected = F.cross_entropy(net(x), y) + 2.5 * (p * (p.log() - log_q)).sum() / 32
    torch.testing.assert_close(output["loss"], expected)
    assert torch.equal(output["logits"], net(x_adv))
    # Gradients flow through both predictions.
    found = torch.autograd.grad(output["loss"], list(net.parameters()))
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_trades_climbs_the_divergence_and_not_the_labels(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:64], digits[1][:64]
    objective = TRADES(BIM(eps=0.1, steps=5))
    torch.manual_seed(3)
    found = objective.worst_inputs(net, x, y)
    torch.manual_seed(3)
    assert torch.equal(found, objective.worst_inputs(net, x, (y + 1) % 10))
    far = divergence(net(x), net(found))
    random = divergence(net(x), net((x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)))
    assert (far > random).float().mean() > 0.95
    assert far.mean() > 5 * random.mean()


def test_the_start_is_off_the_image_where_the_divergence_is_flat(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    still = TRADES(BIM(eps=0.1, steps=3), start_noise=0.0).worst_inputs(net, x, y)
    moved = TRADES(BIM(eps=0.1, steps=3)).worst_inputs(net, x, y)
    # Without the noise the first gradient is rounding error, and the climb is the weaker for it.
    assert divergence(net(x), net(moved)).sum() > 1.2 * divergence(net(x), net(still)).sum()
    assert (distance(moved, x, "linf") <= 0.1 + 1e-6).all()
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_mart_by_the_formula(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    objective = MART(ATTACK, weight=3.0)
    x_adv = objective.worst_inputs(net, x, y)
    output = objective.loss_at(net, x, x_adv, y)
    p, q = net(x).double().softmax(1), net(x_adv).double().softmax(1)
    rows = torch.arange(32)
    rival = q.scatter(1, y.unsqueeze(1), 0).amax(1)
    boosted = -q[rows, y].log() - (1 - rival).log()
    robust = (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    torch.testing.assert_close(output["loss"].double(), (boosted + 3 * robust).mean(), rtol=1e-4, atol=1e-4)
    assert torch.equal(output["logits"], net(x_adv))


def test_the_boosted_cross_entropy_survives_a_certain_mistake() -> None:
    logits = torch.tensor([[0.0, 90.0, 0.0], [90.0, 0.0, 0.0]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    loss.backward()
    torch.testing.assert_close(loss.item(), (90 + 90 - torch.log(torch.tensor(2.0)).item()) / 2)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] > 0.9  # both halves push the wrong class down


@pytest.mark.parametrize("name", MAKE)
def test_the_attack_is_in_eval_mode_and_averages_move_only_in_training(
    name: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:16], digits[1][:16]
    for in_eval_mode in (True, False):
        model = Modes(net).train()
        MAKE[name](ATTACK, attack_in_eval_mode=in_eval_mode)(model, x, y)
        passes = len(model.flags) - 2
        assert model.flags == [not in_eval_mode] * passes + [True] * 2
        assert model.norm.num_batches_tracked.item() == (2 if in_eval_mode else passes + 2)
        assert torch.equal(model.seen[-2], x)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", MAKE)
def test_every_weight_learns_under_autocast(name: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    # Autocast keeps cast weights: those cast without a graph would cut the weights off from the loss.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MAKE[name](ATTACK)(net.train(), digits[0][:16], digits[1][:16])["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", MAKE)
def test_warm_up_and_margin(name: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:16], digits[1][:16]
    objective = MAKE[name](PGD(eps=0.15, steps=3), warmup=0.5, margin=4 / 3)
    assert isinstance(objective, Scheduled)
    assert isinstance(objective, MinMax)
    for fraction, eps in ((0.0, 0.0), (0.25, 0.1), (0.5, 0.2), (1.0, 0.2)):
        objective.set_progress(fraction)
        assert objective.eps == pytest.approx(eps)
        reached = distance(objective.worst_inputs(net, x, y), x, "linf")
        assert (reached <= eps + 1e-6).all()
        assert (reached >= 0.8 * eps).all()


def test_an_example_is_attacked_as_it_would_be_alone(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:8]
    inner = InnerAttack(PGD(eps=1.0, norm="l2", steps=3, random_start=False))
    clean = net(x + 0.01).detach()

    def climbed(rows: slice) -> Tensor:
        return inner.maximise(net, x[rows], lambda logits: divergence(clean[rows], logits))

    together = climbed(slice(0, 8))
    assert (distance(together, x, "l2") <= 1 + 1e-5).all()
    torch.testing.assert_close(together, torch.cat([climbed(slice(i, i + 1)) for i in range(8)]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TRADES(ATTACK, beta=0), "beta must be positive and finite, got 0"),
        (lambda: TRADES(ATTACK, beta=float("inf")), "beta must be positive and finite, got inf"),
        (lambda: TRADES(ATTACK, start_noise=-1e-3), "start_noise must be at least 0"),
        (lambda: TRADES(ATTACK, warmup=1), r"warmup .*\[0, 1\), got 1"),
        (lambda: MART(ATTACK, weight=-1), "weight must be finite and at least 0, got -1"),
        (lambda: MART(ATTACK, margin=0), "margin must be a positive factor"),
        (lambda: MART(PGD(restarts=2)), "restarts must be 1 in training"),
        (lambda: TRADES("pgd"), "FGSM, BIM or PGD, got str"),
    ],
)
def test_bad_arguments(make: Callable[[], Objective], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_all_share_one_inner_attack() -> None:
    for objective in (AdversarialTraining(ATTACK, 0.5), TRADES(ATTACK, warmup=0.5), MART(ATTACK, warmup=0.5)):
        inner = objective._inner
        assert isinstance(inner, InnerAttack)
        objective.set_progress(0.25)
        assert objective.eps == inner.eps == pytest.approx(0.05)
