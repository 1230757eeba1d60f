"""Models that may refuse to name a class: a refusal is no success of an attack, and an error on a clean image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import (
    APGD,
    BIM,
    DDN,
    FAB,
    FGSM,
    JSMA,
    MIM,
    PGD,
    Attack,
    CarliniWagner,
    DeepFool,
    NearestL2,
    NewtonFool,
    Square,
    Transfer,
    WorstCase,
)
from robustlit.training import RobustClassifier


class Refusing(nn.Module):
    """A net that refuses images whose mean brightness has been raised: the last logit is above the others then."""

    stochastic = False
    rejects = True

    def __init__(self, net: nn.Module, limit: float = 0.17, noise: float = 0.0) -> None:
        super().__init__()
        self.net, self.limit, self.noise = net, limit, noise

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        limit = self.limit + (self.noise * torch.randn(len(x)) if self.noise else 0)
        refusal = logits.amax(1) + 100 * (x.flatten(1).mean(1) - limit)
        return torch.cat([logits, refusal.unsqueeze(1)], 1)

    def attack_view(self) -> nn.Module:
        return self

    def undefended(self) -> nn.Module:
        return self.net


@pytest.fixture
def refusing(net: nn.Module) -> Refusing:
    return Refusing(net)


@pytest.fixture
def accepted(refusing: Refusing, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Digits that are classified right and not refused."""
    x, y = digits
    keep = refusing(x).argmax(1) == y
    assert keep.sum() > 100
    return x[keep][:30], y[keep][:30]


ATTACKS = [
    FGSM(eps=0.3), BIM(eps=0.3), PGD(eps=0.3), MIM(eps=0.3), APGD(eps=0.3, steps=20),
    APGD(eps=0.3, steps=20, loss="dlr", targets=3), Square(eps=0.3, queries=100), WorstCase(eps=0.3),
    DeepFool(norm="l2"), CarliniWagner(searches=2, steps=40), NewtonFool(), JSMA(), FAB(norm="l2", steps=20), DDN(),
    NearestL2(explore=20, refine=20, finish=20),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.name}-{getattr(a, 'loss', '')}")
def test_every_attack_gets_past_the_refusal_or_says_that_it_failed(
    attack: Attack, refusing: Refusing, accepted: tuple[Tensor, Tensor]
) -> None:
    x, y = accepted
    result = attack.run(refusing, x, y, index=torch.arange(len(x)), seed=0)
    prediction = refusing(result.x_adv).argmax(1)
    assert torch.equal(result.success, (prediction != y) & (prediction != 10))
    if not isinstance(attack, FGSM):  # its one step does not see the refusal that it runs into
        assert result.success.float().mean() > 0.4


def test_an_attack_that_ignores_the_refusal_is_refused(refusing: Refusing, accepted: tuple[Tensor, Tensor]) -> None:
    x, y = accepted
    knows = PGD(eps=0.3).run(refusing, x, y, seed=0)
    ignores = Transfer(PGD(eps=0.3), refusing.net).run(refusing, x, y, seed=0)
    assert (ignores.prediction == 10).float().mean() > 0.3
    assert knows.success.float().mean() > ignores.success.float().mean() + 0.2


def test_a_random_refusal_is_judged_by_votes(net: nn.Module, accepted: tuple[Tensor, Tensor]) -> None:
    x, y = accepted
    model = Refusing(net, noise=0.04)
    model.stochastic = True
    result = PGD(eps=0.1, steps=10).run(model, x[:20], y[:20], index=torch.arange(20), seed=0)
    with torch.no_grad():
        draws = torch.stack([model(result.x_adv).argmax(1) for _ in range(50)])
    share = ((draws != y[:20]) & (draws != 10)).float().mean(0)
    assert result.success.any()
    assert share[result.success].min() > 0.3
    assert share[~result.success].max() < 0.7


def test_the_refusal_is_no_class_to_ask_for(refusing: Refusing, accepted: tuple[Tensor, Tensor]) -> None:
    x, y = accepted
    with pytest.raises(ValueError, match=r"target must lie in \[0, 9\]"):
        PGD(eps=0.3).run(refusing, x, y, target=torch.full_like(y, 10))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 9\]"):
        evaluate(refusing, (x, torch.full_like(y, 10)), [FGSM(eps=0.3)])


def test_refusing_a_clean_image_is_an_error_and_an_adversarial_one_a_success(
    refusing: Refusing, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    refused = refusing(x).argmax(1) == 10
    wrong = refusing.net(x).argmax(1) != y
    assert refused.sum() > 5
    result = evaluate(refusing, (x, y), [PGD(eps=0.3)], knowledge=["greybox"])
    assert result.clean_accuracy.n - result.clean_accuracy.correct == int((refused | wrong).sum())
    table = result.to_frame().set_index("index")
    assert (~table.loc[refused.nonzero().flatten().tolist(), "clean"]).all()
    robust = table[table["clean"] & ~table["success"]]
    assert (robust["prediction"] == 10).sum() > 20  # refused, hence robust


def test_the_module_takes_the_additional_logit(refusing: Refusing, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    module = RobustClassifier(refusing, lambda *a: {}, torch.optim.Adam, num_classes=10)  # type: ignore[arg-type]
    batch: Any = (x, y)
    module._check(batch)
    module.test_accuracy.update(module._evaluated(x), y)
    assert float(module.test_accuracy.compute()) == float((refusing(x).argmax(1) == y).float().mean())
