"""What an attack does to an example does not depend on who else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, AttackResult, BudgetAttack

LINF = [
    FGSM(eps=0.08),
    FGSM(eps=0.08, random_start=True, step_size=0.1),
    BIM(eps=0.08, steps=6),
    PGD(eps=0.08, steps=6, restarts=3),
    PGD(eps=0.08, steps=6, random_start=False),
]
L2 = [
    FGSM(eps=1.2, norm="l2"),
    FGSM(eps=1.2, norm="l2", random_start=True),
    BIM(eps=1.2, norm="l2", steps=6),
    PGD(eps=1.2, norm="l2", steps=6, restarts=3),
]
FIELDS = ("x_adv", "success", "prediction", "distance", "forwards", "backwards")
N = 20


def _name(attack: BudgetAttack) -> str:
    return f"{attack.name}-{attack.norm}-{'random' if getattr(attack, 'random_start', False) else 'fixed'}"


class Batch:
    """Digits with a budget each, one of them misclassified to begin with, and numbers of no order."""

    def __init__(self, images: Tensor, labels: Tensor, attack: BudgetAttack, dtype: torch.dtype) -> None:
        self.attack = attack
        self.x, self.y = images[:N].to(dtype), labels[:N].clone()
        self.y[4] = (self.y[4] + 1) % 10
        self.eps = torch.linspace(0, 2.5, N, dtype=dtype)[torch.randperm(N)] * attack.eps
        self.index = torch.randperm(10_000)[:N]
        self.target = (self.y + 3) % 10

    def run(self, model: nn.Module, rows: Tensor, targeted: bool = False) -> AttackResult:
        return self.attack.run(
            model,
            self.x[rows],
            self.y[rows],
            target=self.target[rows] if targeted else None,
            index=self.index[rows],
            seed=7,
            eps=self.eps[rows] * (2 if targeted else 1),
        )


def _same(part: AttackResult, whole: AttackResult, rows: Tensor) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[rows], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", LINF + L2, ids=_name)
def test_alone_in_part_and_in_another_order(
    attack: BudgetAttack, targeted: bool, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, batch = net.double(), Batch(*digits, attack, torch.float64)
    whole = batch.run(net, torch.arange(N), targeted)
    # Some leave at once, some on the way, some never: else this test would say nothing about compaction.
    assert whole.success.any()
    assert not whole.success.all()
    if len({*whole.backwards.tolist()}) < 3:
        assert attack.name == "fgsm"
    for row in range(N):
        rows = torch.tensor([row])
        _same(batch.run(net, rows, targeted), whole, rows)
    for rows in (torch.randperm(N), torch.randperm(N)[:7]):
        _same(batch.run(net, rows, targeted), whole, rows)


@pytest.mark.parametrize("attack", [LINF[3], L2[3]], ids=_name)
def test_single_precision_reaches_the_same_verdicts(
    attack: BudgetAttack, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    batch = Batch(*digits, attack, torch.float32)
    whole = batch.run(net, torch.arange(N))
    for row in range(N):
        alone = batch.run(net, torch.tensor([row]))
        assert alone.success.item() == whole.success[row].item()
        torch.testing.assert_close(alone.x_adv[0], whole.x_adv[row], rtol=0, atol=1e-4)


def test_one_budget_for_all_is_the_same_budget_for_each(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:N], digits[1][:N]
    for attack in (LINF[3], L2[3]):
        own = attack.run(net, x, y, seed=1)
        for eps in (attack.eps, torch.full((N,), attack.eps), torch.full((N,), attack.eps, dtype=torch.float64)):
            _same(attack.run(net, x, y, seed=1, eps=eps), own, torch.arange(N))


@pytest.mark.parametrize("attack", LINF + L2, ids=_name)
def test_another_budget_is_the_attack_made_for_it(
    attack: BudgetAttack, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    # The step scales with the budget, whether it was given as a number or by the attack's rule.
    x, y = digits[0][:N].double(), digits[1][:N]
    step_size = getattr(attack, "step_size", None)
    made_for_it = replace(attack, eps=attack.eps / 2, step_size=None if step_size is None else step_size / 2)
    expected = made_for_it.run(net.double(), x, y, seed=1)
    _same(attack.run(net, x, y, seed=1, eps=attack.eps / 2), expected, torch.arange(N))


def test_an_example_draws_by_its_number_and_seed(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4], digits[1][:4]
    attack = FGSM(eps=0.02, random_start=True)  # too small to break any: every start leaves its trace
    index = torch.tensor([5, 6, 7, 8])
    first = attack.run(net, x, y, index=index, seed=0).x_adv
    assert torch.equal(attack.run(net, x, y, index=index, seed=0).x_adv, first)
    for other in (
        attack.run(net, x, y, index=index, seed=1).x_adv,
        attack.run(net, x, y, index=index + 1, seed=0).x_adv,
    ):
        assert ((other - first).abs().flatten(1).amax(1) > 1e-3).all()
    same = attack.run(net, x[[0, 0]], y[[0, 0]], index=torch.tensor([5, 5]), seed=0).x_adv
    assert torch.equal(same[0], same[1])
    torch.testing.assert_close(same[0], first[0], rtol=0, atol=1e-6)
