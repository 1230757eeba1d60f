"""Transfer: crafted on a source, judged on a model of which only the logits are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from cases import Function, in_parts
from torch import Tensor, nn

from robustlit.attacks import FGSM, MIM, PGD, Attack, BudgetAttack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.transfer import Transfer
from robustlit.attacks.victim import Victim
from robustlit.evaluation import Sweep
from robustlit.evaluation.columns import as_evaluation
from robustlit.models import SmallCNN
from robustlit.threat import distance

N = 30


@dataclass(frozen=True)
class Boundary(Attack):
    """A minimal attack: steps along the normalised gradient until the criterion is reached, no farther."""

    name: ClassVar[str] = "boundary"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    targeted: ClassVar[bool] = False
    norm: str = field(default="l2", kw_only=True)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert not criterion.reached(victim.logits(x, rows)).any()  # the contract of every search
        z, won = x.clone(), torch.zeros(len(x), dtype=torch.bool)
        for _ in range(20):
            logits, _, gradient = victim.gradient(z, criterion.margin, rows)
            won |= criterion.reached(logits)
            step = 0.25 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            z = torch.where(won.view(-1, 1, 1, 1), z, (z + step).clamp(0, 1))
        return z


@pytest.fixture(scope="module")
def source_state(train_on_digits: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return train_on_digits(20_000, 30_000, seed=5, lr=5e-3, width=0.5, hidden=30)


@pytest.fixture
def source(source_state: dict[str, Tensor]) -> nn.Module:
    net = SmallCNN(width=0.5, hidden=30)
    net.load_state_dict(source_state)
    return net.eval()


def test_the_model_under_attack_only_judges(net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    result = Transfer(PGD(eps=0.3, steps=10), source).run(Function(lambda z: net(z).detach()), x, y, seed=0)
    prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, prediction != y)
    assert result.success.float().mean() > 0.5
    assert not result.success.all()
    assert (result.distance <= 0.3 + 1e-6).all()
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1
    wrong = net(x).argmax(1) != y
    assert wrong.any()
    assert torch.equal(result.x_adv[wrong], x[wrong])
    # Two of the model; of the source the clean image, every step and the last judgement, whether broken or not.
    assert torch.equal(result.forwards, torch.where(wrong, 2, 2 + 12))
    assert torch.equal(result.backwards, torch.where(wrong, 0, 10))


def test_going_on_after_the_source_is_broken_transfers_better(
    net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    for attack in (PGD(eps=0.2, steps=20), MIM(eps=0.2), PGD(eps=2.0, norm="l2", steps=20)):
        stopped = attack(source, x, y, seed=0)
        early = (net(stopped).argmax(1) != y).float().mean()
        result = Transfer(attack, source).run(net, x, y, seed=0)
        assert (result.distance <= attack.eps + 1e-6).all()
        assert result.success.float().mean() > early + 0.05, attack


def test_the_point_of_highest_loss_is_taken_over_all_restarts(
    net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:N], digits[1][:N]
    losses = []
    for restarts in (1, 4):
        x_adv = Transfer(PGD(eps=0.1, steps=5, restarts=restarts), source)(net, x, y, seed=0)
        losses.append(Criterion(y).log_odds(source(x_adv)))
    assert (losses[1] >= losses[0] - 1e-5).all()
    assert (losses[1] > losses[0] + 1e-4).any()


def test_on_the_net_itself_it_is_at_least_the_attack(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    for attack in (FGSM(eps=0.1), PGD(eps=0.08, steps=10)):
        own, moved = attack.run(net, x, y, seed=0), Transfer(attack, net).run(net, x, y, seed=0)
        assert (moved.success >= own.success).float().mean() > 0.99


@pytest.mark.parametrize("attack", [PGD(eps=0.15, steps=4, restarts=2), PGD(eps=1.5, norm="l2", steps=4), Boundary()])
@pytest.mark.parametrize("targeted", [False, True])
def test_an_example_does_not_depend_on_its_batch(
    attack: Attack, targeted: bool, net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    if targeted and not attack.targeted:
        return
    net, x, y = net.double(), digits[0][:N].double(), digits[1][:N].clone()
    y[4] = (y[4] + 1) % 10
    options = {"index": torch.randperm(10_000)[:N], **({"target": (y + 3) % 10} if targeted else {})}
    if isinstance(attack, BudgetAttack):
        options["eps"] = torch.linspace(0, 2, N, dtype=torch.float64) * attack.eps
    in_parts(Transfer(attack, source.double(), 1.0 if "eps" in options else 2.0), net, x, y, **options)


def test_without_a_seed_every_call_draws_anew(net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], digits[1][:6]
    attack = Transfer(FGSM(eps=0.1, random_start=True, step_size=0.01), source)
    assert not torch.equal(attack(net, x, y), attack(net, x, y))
    assert torch.equal(attack(net, x, y, seed=0), attack(net, x, y, seed=0))


def test_a_minimal_attack_stops_at_the_sources_boundary_unless_stretched(
    net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0], digits[1]
    plain = Transfer(Boundary(), source)
    assert not isinstance(plain, BudgetAttack)
    assert (plain.name, plain.norm) == ("transfer-boundary", "l2")
    crafted = Boundary().run(source, x, y)
    result = plain.run(net, x, y)
    both = (source(x).argmax(1) == y) & (net(x).argmax(1) == y)
    torch.testing.assert_close(result.x_adv[both], crafted.x_adv[both], rtol=0, atol=1e-4)
    torch.testing.assert_close(result.distance, distance(result.x_adv, x, "l2"))
    missed = (source(x).argmax(1) != y) & (net(x).argmax(1) == y)
    assert missed.any()
    assert torch.equal(result.x_adv[missed], x[missed])  # the source knows no direction
    assert (result.forwards[missed] == 3).all()
    farther = Transfer(Boundary(), source, stretch=2.5).run(net, x, y)
    expected = (x + 2.5 * (result.x_adv - x)).clamp(0, 1)
    torch.testing.assert_close(farther.x_adv[both], expected[both], rtol=0, atol=1e-5)
    assert farther.success.sum() > result.success.sum() + 20


def test_a_budget_attack_stays_one_in_a_sweep(net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:40], digits[1][:40]
    attack = Transfer(PGD(eps=0.2, steps=5), source)
    assert isinstance(attack, BudgetAttack)
    assert isinstance(attack, Transfer)
    sweep = Sweep([attack, Transfer(Boundary(), source), PGD(eps=0.2, steps=5)], {"linf": [0.1, 0.3]})
    assert list(sweep.named) == ["transfer-pgd", "transfer-boundary", "pgd"]
    table = as_evaluation([sweep.attack_batch(net, x, y, torch.arange(40))], sweep.meta())
    accuracy = [float(table.accuracy(attack="transfer-pgd", eps=eps)) for eps in (0.1, 0.2, 0.3)]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > accuracy[2]
    assert float(table.accuracy(attack="pgd", eps=0.2)) <= accuracy[1]


def test_the_source_is_left_as_it_was(net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.2), source)
    model[0].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    with torch.inference_mode():
        Transfer(PGD(eps=0.1, steps=2), model).run(net, digits[0][:5].clone(), digits[1][:5], seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert int(model[0].num_batches_tracked) == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_source_whose_logits_are_nan_fails_for_those_examples_alone(
    net: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    bright_is_nan = Function(lambda z: source(z).where(z.flatten(1).mean(1, keepdim=True) < 0.15, float("nan")))
    result = Transfer(PGD(eps=0.2, steps=3), bright_is_nan).run(net, x, y, seed=0)
    assert result.x_adv.isfinite().all()
    well = Transfer(PGD(eps=0.2, steps=3), source).run(net, x, y, seed=0)
    assert 0 < result.success.sum() <= well.success.sum()


def test_it_is_a_value() -> None:
    source = SmallCNN()
    attack = Transfer(PGD(0.1), source)
    assert attack == Transfer(attack=PGD(0.1), source=source)
    assert hash(attack) == hash(Transfer(PGD(0.1), source))
    assert attack != Transfer(PGD(0.2), source)
    assert attack != Transfer(PGD(0.1), SmallCNN())
    assert (attack.name, attack.eps, attack.norm) == ("transfer-pgd", 0.1, "linf")
    assert Transfer.name == "transfer"
    assert str(attack) == f"Transfer({PGD(0.1)!r}, <SmallCNN>)"
    assert Transfer(Boundary(), source).targeted is False
    with pytest.raises(ValueError, match="leaving the true class only"):
        Transfer(Boundary(), source).run(source, torch.rand(1, 1, 28, 28), torch.tensor([0]), target=torch.tensor([1]))
    for build, message in (
        (lambda: Transfer("pgd", source), "must be an attack"),
        (lambda: Transfer(PGD(), "net.pt"), "must be a model"),
        (lambda: Transfer(Boundary(), source, stretch=0.5), "at least 1, got 0.5"),
        (lambda: Transfer(PGD(), source, stretch=2.0), "for minimal attacks"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
