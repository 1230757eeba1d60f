"""Hyper-parameters and arguments that attacks refuse, and their messages; the two ways to give a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    AutoAttack,
    BudgetAttack,
    CarliniWagner,
    DeepFool,
    JointAttack,
    NearestL2,
    NewtonFool,
    Square,
    WorstCase,
)  # fmt: skip
from robustlit.attacks.ascent import GradientAscent


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


NAN, INF = float("nan"), float("inf")
REFUSED: dict[type[Attack], list[dict[str, object]]] = {
    APGD: [{"loss": "hinge"}, {"steps": 0}, {"restarts": 0}, {"targets": 0}, {"rho": 1.0}, {"rho": 0}, {"eps": 8}],
    CarliniWagner: [{"searches": 0}, {"steps": 2.5}, {"lr": 0}, {"confidence": -1}, {"initial_const": 0}],
    AutoAttack: [{"version": "plus"}, {"version": 2}],
    DDN: [{"steps": 0}, {"gamma": 1.0}, {"initial_norm": 0}],
    DeepFool: [{"steps": 0}, {"overshoot": -0.1}, {"overshoot": NAN}, {"candidates": 1}, {"candidates": 2.5}],
    FAB: [{"steps": 0}, {"restarts": 0}, {"candidates": 0}, {"alpha_max": 1.5}, {"eta": 0.5}, {"beta": 1.0},
          {"eps": 8}],
    JointAttack: [{"method": "sum"}, {"steps": 0}, {"searches": 1.5}, {"look": 0}, {"slack": -0.1}, {"confidence": NAN},
                  {"weight": 0}, {"eps": 8}],
    JSMA: [{"theta": 0}, {"theta": -1.5}, {"theta": "1"}, {"gamma": 0}, {"gamma": 14.5}, {"outputs": "softmax"}],
    MIM: [{"steps": 0}, {"decay": -0.1}, {"decay": NAN}, {"decay": INF}, {"decay": "1"}, {"decay": True}],
    NearestL2: [{"boundary": 9}] + [{name: 0} for name in ("explore", "candidates", "kept", "refine", "finish")],
    NewtonFool: [{"steps": 0}, {"eta": 0}, {"eta": INF}],
    Square: [{"queries": 0}, {"patch": 0}, {"patch": 1.5}, {"restarts": 0}],
    WorstCase: [{"rounds": 0}, {"control": -0.1}, {"control": 1.5}, {"control": NAN}, {"version": 1}],
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_settings_out_of_range_are_refused(kind: type[Attack]) -> None:
    for settings in REFUSED[kind]:
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
            kind(**settings)
    with pytest.raises(ValueError, match=r"did you mean 0\.145\?"):
        JSMA(gamma=14.5)


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


def test_a_budget_of_one_example_in_255ths_gets_a_hint() -> None:
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


def test_a_gradient_of_zero_is_warned_about() -> None:
    for output in (lambda logits: logits.round(), lambda logits: logits * 0 + torch.tensor([5.0, 0.0, 0.0])):
        for attack in ATTACKS:
            with pytest.warns(UserWarning, match=r"gradient of Net is zero.*attack_view"):
                result = attack.run(Net(output), X, Y)
            assert not result.success.any()


@pytest.mark.filterwarnings("error")
def test_a_net_with_gradients_is_not_warned_about(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30].requires_grad_(), digits[1][:30]
    for attack in ATTACKS:
        assert attack.run(net, x, y, seed=0).backwards.sum() > 0


STEPS = [FGSM, partial(BIM, steps=3), partial(PGD, steps=3), partial(MIM, steps=3)]


@pytest.mark.parametrize("make", STEPS, ids=["fgsm", "bim", "pgd", "mim"])
def test_a_relative_step_is_the_same_multiple_at_every_eps(
    make: Callable[..., GradientAscent], net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:6], digits[1][:6]
    absolute, relative = make(0.1, step_size=0.1 * 0.3), make(0.1, relative_step_size=0.3)
    assert relative.step_over_eps == 0.3  # not a rounding off
    for eps in (None, 0.2, torch.linspace(0, 0.2, 6)):
        given = absolute.run(net, x, y, seed=1, eps=eps)
        torch.testing.assert_close(relative.run(net, x, y, seed=1, eps=eps).x_adv, given.x_adv, rtol=0, atol=1e-5)
    assert replace(relative, eps=0.2).step_over_eps == 0.3
    torch.testing.assert_close(replace(absolute, eps=0.2).step_over_eps, 0.15)


@pytest.mark.parametrize("make", STEPS, ids=["fgsm", "bim", "pgd", "mim"])
def test_what_steps_are_refused_or_warned_about(make: Callable[..., GradientAscent]) -> None:
    with pytest.raises(ValueError, match=r"got step_size=0.05 .* and relative_step_size=0.5 .*set one of them to None"):
        make(0.1, step_size=0.05, relative_step_size=0.5)
    for bad in (0, -1, float("nan"), float("inf"), "0.5", True):
        with pytest.raises(ValueError, match=f"relative_step_size must be positive and finite, got {bad!r}"):
            make(0.1, relative_step_size=bad)
    for long in ({"step_size": 0.3}, {"relative_step_size": 3.0}):
        with pytest.warns(UserWarning, match=r"steps 0.3 pixel units, 3 times eps=0.1: .* relative_step_size="):
            make(0.1, **long)


@pytest.mark.filterwarnings("error")
def test_steps_of_two_eps_and_the_attacks_own_rule_are_not_warned_about() -> None:
    for attack in (PGD(0.1, steps=1), PGD(0.3, step_size=0.6), MIM(0.1, relative_step_size=2), FGSM(0.1)):
        assert eval(repr(attack), {"FGSM": FGSM, "PGD": PGD, "MIM": MIM}) == attack
    assert "relative_step_size" not in repr(PGD(0.1))  # the text of an attack in tables written before
