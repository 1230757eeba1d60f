"""All attacks with settings that take a fraction of a second on a few digits, and what the tests over them share."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, AttackResult, BudgetAttack


@dataclass(frozen=True)
class Case:
    """An attack, and what the tests may ask of it.

    Args:
        module, kind, settings: `robustlit.attacks.MODULE.KIND(**settings)`.
        near: On a linear model it succeeds within this multiple of the least distance; None if it does not minimise.
        thorough: Its settings there.
        large: Settings changed for one image of 3 x 224 x 224.
        gradients: It needs them.
        flat: It attacks (B, D) and (B, H, W), not only images (B, C, H, W).
        random: Its result depends on the seed.
        stays: Settings changed to keep its points nearer to their own image than to others.
    """

    module: str
    kind: str
    settings: dict[str, Any]
    near: float | None = 1.05
    thorough: dict[str, Any] = field(default_factory=dict)
    large: dict[str, Any] = field(default_factory=dict)
    gradients: bool = True
    flat: bool = True
    random: bool = False
    stays: dict[str, Any] = field(default_factory=dict)

    @property
    def staying(self) -> Case:
        """The case for tests that assign a point to the image nearest to it."""
        return replace(self, settings={**self.settings, **self.stays})

    @property
    def kind_of_attack(self) -> type[Attack]:
        return getattr(importlib.import_module(f"robustlit.attacks.{self.module}"), self.kind)

    @property
    def attack(self) -> Attack:
        return self.kind_of_attack(**self.settings)

    def __str__(self) -> str:
        return f"{self.module}-{self.settings.get('norm', '')}".rstrip("-")


SQUARE: dict[str, Any] = {"thorough": {"queries": 3000}, "gradients": False, "flat": False, "random": True}
CASES = [
    Case("fgsm", "FGSM", {"eps": 0.1}),
    Case("fgsm", "FGSM", {"eps": 1.5, "norm": "l2", "random_start": True}, random=True),
    Case("bim", "BIM", {"eps": 1.5, "norm": "l2", "steps": 4}),
    Case("pgd", "PGD", {"eps": 0.1, "steps": 4, "restarts": 2}, random=True),
    Case("mim", "MIM", {"eps": 0.1, "steps": 4}),
    Case("apgd", "APGD", {"eps": 0.1, "steps": 6}, random=True),
    Case("apgd", "APGD", {"eps": 1.5, "norm": "l2", "steps": 6, "loss": "dlr", "targets": 2}, random=True),
    Case("square", "Square", {"eps": 0.3, "queries": 30}, 1.5, **SQUARE),
    Case("square", "Square", {"norm": "l2", "eps": 2.5, "queries": 30}, 3, **SQUARE),
    Case("deepfool", "DeepFool", {"steps": 8}),
    Case("deepfool", "DeepFool", {"steps": 8, "norm": "linf"}),
    Case("carlini_wagner", "CarliniWagner", {"searches": 2, "steps": 15}),
    Case("ddn", "DDN", {"steps": 15}),
    Case("fab", "FAB", {"steps": 8}),
    Case("fab", "FAB", {"steps": 8, "norm": "linf"}),
    Case("newtonfool", "NewtonFool", {"steps": 15}, near=None),
    Case("jsma", "JSMA", {"gamma": 0.02}, None, {"outputs": "probabilities"}, large={"gamma": 0.0002}),
    Case("nearest_l2", "NearestL2", {"explore": 6, "candidates": 2, "refine": 6, "finish": 6}, stays={"boundary": 1}),
    Case("worst_case", "WorstCase", {"eps": 0.1}, flat=False, random=True),
    Case("auto_attack", "AutoAttack", {"eps": 0.1}, flat=False, random=True),  # short here: see conftest.py
]
each = pytest.mark.parametrize("case", CASES, ids=str)
each_budget = pytest.mark.parametrize("case", [c for c in CASES if issubclass(c.kind_of_attack, BudgetAttack)], ids=str)
# Every attack untargeted, and targeted, where it can be.
each_way = pytest.mark.parametrize(
    ("case", "targeted"),
    [
        pytest.param(case, targeted, id=f"{case}-{'targeted' if targeted else 'untargeted'}")
        for case in CASES
        for targeted in (False, True)
        if (case.kind_of_attack.targeted if targeted else case.attack.untargeted)
    ],
)
FIELDS = [entry.name for entry in fields(AttackResult)]
N, WRONG = 8, 2  # examples, and the one that is misclassified (targeted: that is the target already) to begin with
OTHERS = torch.arange(N) != WRONG


@dataclass
class Batch:
    """Digits as a net classifies them, but one, numbered out of order, each with a target class."""

    x: Tensor
    y: Tensor
    index: Tensor

    @classmethod
    def of(cls, net: nn.Module, x: Tensor) -> Batch:
        y = net(x).argmax(1)
        y[WRONG] = (y[WRONG] + 7) % 10
        return cls(x, y, torch.arange(N).flip(0) * 3)

    @property
    def target(self) -> Tensor:
        return (self.y + 3) % 10

    def run(self, case: Case, model: nn.Module, rows: Tensor | None = None, **options: Any) -> AttackResult:
        """Run the attack of a case on the examples `rows`; with a target, if it needs one."""
        rows = torch.arange(len(self.x)) if rows is None else rows
        if not case.attack.untargeted:
            options.setdefault("target", self.target[rows])
        options = {"index": self.index[rows], "seed": 5, **options}
        return case.attack.run(model, self.x[rows], self.y[rows], **options)

    def double(self) -> Batch:
        return Batch(self.x.double(), self.y, self.index)

    def reached(self, case: Case, prediction: Tensor) -> Tensor:
        return prediction != self.y if case.attack.untargeted else prediction == self.target

    def nearest(self, x: Tensor) -> Tensor:
        """Which digit of the batch each image (b, ...) was made from: few of its pixels are far from the original's."""
        apart = (x.detach().flatten(1)[:, None] - self.x.flatten(1)).abs().double()  # (b, N, pixels)
        return ((apart - 0.35).clamp(min=0).sum(2) + 1e-3 * apart.square().sum(2)).argmin(1)


def quietly(case: Case, batch: Batch, model: nn.Module, **options: Any) -> AttackResult:
    """Run an attack whose warnings are expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return batch.run(case, model, **options)


def same(found: AttackResult, expected: AttackResult, rows: Tensor | None = None, atol: float = 1e-9) -> None:
    for name in FIELDS:
        want = getattr(expected, name) if rows is None else getattr(expected, name)[rows]
        torch.testing.assert_close(getattr(found, name), want, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def in_parts(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, **options: Tensor) -> AttackResult:
    """Attack a batch, alone, in part and in another order; the options have one entry per example."""
    given = x.clone()
    whole = attack.run(model, x, y, seed=3, **options)
    assert torch.equal(x, given)
    assert 0 < whole.success.sum() < len(x)
    assert 0 <= whole.x_adv.min() <= whole.x_adv.max() <= 1
    if "eps" in options:
        assert (whole.distance <= options["eps"] + 1e-6).all()
    for rows in (torch.tensor([5]), torch.tensor([9]), torch.randperm(len(x)), torch.tensor([7, 1, 2])):
        part = {name: value[rows] for name, value in options.items()}
        same(attack.run(model, x[rows], y[rows], seed=3, **part), whole, rows)
    return whole


class Function(nn.Module):
    """A model that is a function of the images."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Linear(nn.Module):
    """Logits of a flat image: `weight` (K, D) and `bias` (K,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("bias", torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Defended(nn.Module):
    """A classifier that is judged on `real` and differentiated on `view`."""

    stochastic = False

    def __init__(self, real: nn.Module, view: nn.Module) -> None:
        super().__init__()
        self.real, self.view = real, view

    def forward(self, x: Tensor) -> Tensor:
        return self.real(x)

    def attack_view(self) -> nn.Module:
        return self.view

    def undefended(self) -> nn.Module:
        return self.view
