"""Attacks are frozen dataclasses; what they and their calls refuse, and how they say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD, Attack, BudgetAttack

EXAMPLES = [
    FGSM(),
    FGSM(0.1, random_start=True, step_size=0.125),
    BIM(eps=2.0, norm="l2", steps=3),
    PGD(),
    PGD(8 / 255, steps=7, restarts=3, step_size=2 / 255),
    PGD(eps=1, norm="l2", random_start=False),
]


@pytest.mark.parametrize("attack", EXAMPLES, ids=str)
def test_an_attack_is_a_value(attack: BudgetAttack) -> None:
    again = eval(repr(attack), {"FGSM": FGSM, "BIM": BIM, "PGD": PGD})
    assert again == attack
    assert hash(again) == hash(attack)
    assert {attack: 1}[again] == 1
    assert replace(attack, eps=0.05) != attack
    for name in ("eps", "norm", "unknown"):
        with pytest.raises(FrozenInstanceError):
            setattr(attack, name, 0.2)


def test_the_first_argument_is_eps() -> None:
    for kind in (FGSM, BIM, PGD):
        assert kind(0.25).eps == 0.25
        assert kind(0.25) == kind(eps=0.25)
        assert kind(1).eps == 1.0
        with pytest.raises(TypeError):
            kind(0.25, norms="l2")
    assert len({FGSM(0.1), BIM(0.1), PGD(0.1), PGD(0.1)}) == 3


def test_defaults_are_those_of_the_papers() -> None:
    assert (FGSM().step_size, FGSM().random_start) == (None, False)
    assert BIM().step_size is None
    assert (PGD().eps, PGD().steps, PGD().random_start, PGD().restarts) == (0.3, 40, True, 1)
    assert {attack.norm for attack in (FGSM(), BIM(), PGD())} == {"linf"}
    assert [kind.name for kind in (FGSM, BIM, PGD)] == ["fgsm", "bim", "pgd"]


def test_hydra_builds_them() -> None:
    hydra = pytest.importorskip("hydra")
    from omegaconf import OmegaConf

    built = hydra.utils.instantiate({"_target_": "robustlit.attacks.PGD", "eps": 0.3})
    assert built == PGD(0.3)
    config = OmegaConf.create(
        {"_target_": "robustlit.attacks.PGD", "eps": 2, "norm": "l2", "steps": 5, "step_size": None, "restarts": 2}
    )
    assert hydra.utils.instantiate(config) == PGD(2.0, norm="l2", steps=5, restarts=2)
    with pytest.raises(Exception, match="did you mean 8/255"):
        hydra.utils.instantiate({"_target_": "robustlit.attacks.FGSM", "eps": 8})


def test_the_base_classes_are_no_attacks() -> None:
    for kind in (Attack, BudgetAttack):
        with pytest.raises(TypeError, match="abstract"):
            kind()


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: PGD(0), ["eps", "positive", "got 0"]),
        (lambda: FGSM(-0.3), ["eps", "positive", "got -0.3"]),
        (lambda: BIM(8), ["eps", "(0, 1]", "got 8", "8/255"]),
        (lambda: PGD("0.3"), ["eps", "number", "'0.3'"]),
        (lambda: PGD(float("nan")), ["eps", "finite", "nan"]),
        (lambda: FGSM(True), ["eps", "number", "True"]),
        (lambda: PGD(torch.tensor([0.1, 0.2])), ["one value per example", "eps=tensor"]),
        (lambda: PGD(0.1, norm="l1"), ["norm", "linf, l2", "'l1'"]),
        (lambda: FGSM(0.1, norm=torch.inf), ["norm", "linf, l2", "inf"]),
        (lambda: PGD(0.1, steps=0), ["steps", "at least 1", "got 0"]),
        (lambda: BIM(0.1, steps=-1), ["steps", "at least 1", "got -1"]),
        (lambda: BIM(0.1, steps=2.5), ["steps", "whole number", "2.5"]),
        (lambda: PGD(0.1, steps=True), ["steps", "whole number", "True"]),
        (lambda: PGD(0.1, step_size=-0.01), ["step_size", "positive", "-0.01"]),
        (lambda: FGSM(0.1, step_size=0), ["step_size", "positive", "got 0"]),
        (lambda: BIM(0.1, step_size=float("nan")), ["step_size", "positive", "nan"]),
        (lambda: BIM(0.1, step_size="2/255"), ["step_size", "2/255"]),
        (lambda: PGD(8 / 255, step_size=2), ["step_size", "got 2", "did you mean 2/255?"]),
        (lambda: PGD(0.1, restarts=0), ["restarts", "at least 1", "got 0"]),
        (lambda: PGD(0.1, restarts=5, random_start=False), ["restarts=5", "random_start=True"]),
    ],
)
def test_unusable_hyperparameters(make: Callable[[], Attack], parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"must|needs") as caught:
        make()
    for part in parts:
        assert part in str(caught.value)


class Net(nn.Module):
    """A linear net of three classes; `output` turns its logits into something else."""

    def __init__(self, output: Callable[[Tensor], object] = lambda logits: logits) -> None:
        super().__init__()
        self.linear, self.output = nn.Linear(4, 3), output
        nn.init.zeros_(self.linear.weight[1:])
        with torch.no_grad():
            self.linear.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> object:
        return self.output(self.linear(x.flatten(1)))


X, Y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
ATTACKS = [FGSM(0.1), BIM(0.1, steps=2), PGD(0.1, steps=2), PGD(0.1, norm="l2", steps=2)]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"eps": 0}, ["eps", "positive", "got 0"]),
        ({"eps": -0.1}, ["eps", "positive", "-0.1"]),
        ({"eps": "0.1"}, ["eps", "number"]),
        ({"eps": [0.1, 0.1, 0.1]}, ["eps", "number"]),
        ({"eps": torch.tensor(0.1)}, ["eps", "(3,)", "got ()"]),
        ({"eps": torch.tensor([0.1, 0.2])}, ["eps", "(3,)", "got (2,)"]),
        ({"eps": torch.full((3, 1), 0.1)}, ["eps", "(3,)", "got (3, 1)"]),
        ({"eps": torch.tensor([0.1, -0.2, 0.1])}, ["eps", "[0, ", "got -0.2"]),
        ({"eps": torch.tensor([0.1, float("nan"), 0.1])}, ["eps", "finite", "nan"]),
        ({"eps": torch.tensor([0.1, float("inf"), 0.1])}, ["eps", "finite", "inf"]),
        ({"x": X + 0.6}, ["[0, 1]", "1.1", "normalised", "Normalize"]),
        ({"x": X - 0.6}, ["[0, 1]", "-0.1"]),
        ({"x": X * float("nan")}, ["finite", "NaN"]),
        ({"x": (X * 255).to(torch.uint8)}, ["float32", "uint8", "/ 255"]),
        ({"x": X[:0], "y": Y[:0]}, ["empty"]),
        ({"y": torch.tensor([0, 1, 3])}, ["labels", "[0, 2]", "[0, 3]"]),
        ({"y": torch.tensor([0, -1, 2])}, ["labels", "[0, 2]", "[-1, 2]"]),
        ({"y": torch.tensor([0.0, 1.0, 2.0])}, ["labels", "integers", "float32"]),
        ({"y": Y[:2]}, ["labels", "(3,)", "(2,)"]),
        ({"y": F.one_hot(Y, 3)}, ["labels", "(3,)", "(3, 3)"]),
        ({"target": torch.tensor([0, 1, 3])}, ["target", "[0, 2]", "[0, 3]"]),
        ({"target": Y[:1]}, ["target", "(3,)", "(1,)"]),
        ({"target": Y.float()}, ["target", "integers"]),
        ({"index": torch.arange(5), "seed": 0}, ["index", "(3,)", "(5,)"]),
        ({"index": torch.rand(3), "seed": 0}, ["index", "integers", "float32"]),
    ],
)
def test_unusable_arguments(arguments: dict[str, object], parts: list[str]) -> None:
    call = {"x": X, "y": Y, **arguments}
    x, y = call.pop("x"), call.pop("y")
    for attack in ATTACKS:
        with pytest.raises(ValueError, match=r"must|empty") as caught:
            attack(Net(), x, y, **call)
        for part in parts:
            assert part in str(caught.value)


def test_a_budget_of_one_example_that_was_meant_in_255ths() -> None:
    eps = torch.tensor([0.1, 8.0, 0.1])
    with pytest.raises(ValueError, match=r"got 8; did you mean 8/255\?"):
        FGSM(0.1)(Net(), X, Y, eps=eps)
    FGSM(0.1, norm="l2")(Net(), X, Y, eps=eps)


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        (lambda logits: (logits, None), ["tuple", "wrap"]),
        (lambda logits: logits[:, :1], ["K >= 2", "(3, 1)"]),
        (lambda logits: logits[:, 0], ["(B, K)", "(3,)"]),
        (lambda logits: logits[:1], ["batch of 3", "(1, 3)"]),
        (lambda logits: logits.unsqueeze(2), ["(B, K)", "(3, 3, 1)"]),
        (lambda logits: F.one_hot(logits.argmax(1), 3), ["int64", "scores"]),
        (lambda logits: F.one_hot(logits.argmax(1), 3).float(), ["no gradient", "attack_view", "robust"]),
        (lambda logits: logits.detach(), ["no gradient", "attack_view", "robust"]),
        (lambda logits: torch.tensor([[5.0, 0.0, 0.0]]).expand(len(logits), 3), ["no gradient", "attack_view"]),
        (lambda logits: torch.zeros(len(logits), 3).requires_grad_(), ["no gradient", "attack_view"]),
    ],
    ids=["tuple", "one-logit", "flat", "one-row", "3d", "one-hot-int", "one-hot", "detached", "constant", "unrelated"],
)
def test_unusable_nets(output: Callable[[Tensor], object], parts: list[str]) -> None:
    for attack in ATTACKS:
        with pytest.raises(ValueError, match=r"gives no gradient|must return logits") as caught:
            attack(Net(output), X, Y)
        for part in parts:
            assert part in str(caught.value)


def test_a_gradient_of_zero_is_told_and_not_taken_for_robustness() -> None:
    for output in (lambda logits: logits.round(), lambda logits: logits * 0 + torch.tensor([5.0, 0.0, 0.0])):
        for attack in ATTACKS:
            with pytest.warns(UserWarning, match=r"gradient of Net is zero.*attack_view"):
                result = attack.run(Net(output), X, Y)
            assert not result.success.any()


@pytest.mark.filterwarnings("error")
def test_a_net_that_sees_is_not_warned_about(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30].requires_grad_(), digits[1][:30]
    for attack in ATTACKS:
        assert attack.run(net, x, y, seed=0).backwards.sum() > 0
