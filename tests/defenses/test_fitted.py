"""What every defense that is fitted to data must do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Function
from torch import Tensor, nn

from robustlit.attacks import BIM
from robustlit.classifier import attack_view, undefended
from robustlit.defenses import detection, logit_corrector, odds_test
from robustlit.defenses import fitted as fitted_module
from robustlit.defenses.fitted import check_clean
from robustlit.models import SmallCNN

Digits = Callable[[int, int], tuple[Tensor, Tensor]]
KINDS = ["LogitDetector", "LogitCorrector", "DetectAndCorrect"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_its_state_restores_it(
    fitted: Callable[[str], Any], build: Callable[..., Any], tmp_path: Path, digits: tuple[Tensor, Tensor], kind: str
) -> None:
    defense = fitted(kind)
    torch.save(defense.state_dict(), tmp_path / "state.pt")
    other = build(kind, SmallCNN())
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for twin in (other.eval(), copy.deepcopy(defense)):
        assert torch.equal(twin(digits[0][:9]), defense(digits[0][:9]))
        assert torch.equal(attack_view(twin)(digits[0][:9]), attack_view(defense)(digits[0][:9]))
    assert undefended(defense) is defense.net
    shape = defense.net.state_dict()["classifier.0.weight"].shape
    assert sum(v.shape == shape for v in defense.state_dict().values()) == 1  # the net is stored once


@pytest.mark.parametrize(
    ("kind", "dtype"), list(zip(KINDS, (torch.float64, torch.float32, torch.float64), strict=True))
)
def test_it_can_be_moved_to_another_precision(
    fitted: Callable[[str], Any], digits: tuple[Tensor, Tensor], kind: str, dtype: torch.dtype
) -> None:
    defense = fitted(kind)
    moved = copy.deepcopy(defense).to(dtype)
    same = moved(digits[0].to(dtype)).argmax(1) == defense(digits[0]).argmax(1)
    assert same.double().mean() > 0.98


@pytest.mark.faults
@every_kind
def test_it_is_not_fitted_on_a_net_that_names_no_class(
    build: Callable[..., Any], train_digits: Digits, net: nn.Module, kind: str
) -> None:
    broken = copy.deepcopy(net)
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=r"logits are not finite for 300 of 300 clean images, so .* cannot be fitted"):
        build(kind, broken).fit(clean=train_digits(0, 300), held_out=train_digits(20_000, 20_100), seed=0)


@every_kind
def test_adversarial_images_given_as_clean_are_refused(
    build: Callable[..., Any], train_digits: Digits, net: nn.Module, kind: str
) -> None:
    x, y = train_digits(0, 300)
    adversarial = BIM(eps=0.3, steps=5)(net, x, y, seed=0)
    defense, held_out = build(kind, net), train_digits(20_000, 20_100)
    with pytest.raises(
        ValueError, match=r"right on only \d+\.\d% of the clean images.*adversarial.*is fitted on clean"
    ):
        defense.fit(clean=(adversarial, y), held_out=held_out)
    with pytest.raises(TypeError):
        defense.fit((x, y), held_out)
    if kind != "LogitCorrector":  # which does not look at held-out images
        with pytest.raises(ValueError, match="of the held-out images"):
            defense.fit(clean=(x, y), held_out=(BIM(eps=0.3, steps=5)(net, *held_out, seed=0), held_out[1]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("LogitCorrector", {"penalty": 0.0}, "penalty must be positive"),
        ("LogitCorrector", {"gamma": -1.0}, "gamma must be positive"),
        ("LogitCorrector", {"eps": ()}, "at least one budget"),
        ("LogitCorrector", {"eps": (0.1, 8)}, "did you mean 8/255"),
        ("LogitCorrector", {"examples": 0}, "examples must be a whole number"),
        ("LogitCorrector", {"temperature": 0.0}, "temperature must be positive"),
        ("LogitDetector", {"noises": ("gaussian",)}, "noises must be among normal, sign, uniform"),
        ("LogitDetector", {"noises": ()}, "noises must be among"),
        ("LogitDetector", {"scales": ()}, "scales must be positive"),
        ("LogitDetector", {"scales": (0.1, -0.1)}, "scales must be positive"),
        ("LogitDetector", {"samples": 0}, "samples must be a whole number"),
        ("LogitDetector", {"samples": 3}, "samples must be even"),
        ("LogitDetector", {"examples": 1.5}, "examples must be a whole number"),
        ("DetectAndCorrect", {"eps": []}, "at least one budget"),
        ("DetectAndCorrect", {"examples": -1}, "examples must be a whole number"),
        ("DetectAndCorrect", {"temperature": -1.0}, "temperature must be positive"),
    ],
)
def test_bad_hyper_parameters_are_refused(
    build: Callable[..., Any], net: nn.Module, kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        build(kind, net, **changes)


def test_large_images_are_fewer_at_once_while_fitting() -> None:
    seen = []

    def classes(x: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.eye(2)[(x.mean((1, 2, 3)) > 0.5).long()]

    x = torch.linspace(0, 1, 40).view(40, 1, 1, 1).expand(40, 3, 224, 224)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    check_clean(Function(classes), (x, y), "LogitCorrector")
    assert seen == [32, 8]


@every_kind
def test_fitting_never_takes_more_than_a_batch(
    trained_state: dict[str, Tensor], train_digits: Digits, build: Callable[..., Any], kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module in (fitted_module, detection, logit_corrector, odds_test):
        monkeypatch.setattr(module, "default_batch_size", lambda shape: 50)
    seen: list[int] = []
    net = SmallCNN()
    net.load_state_dict(trained_state)
    net.register_forward_hook(lambda module, given, answer: seen.append(len(given[0])))
    build(kind, net.eval()).fit(clean=train_digits(0, 800), held_out=train_digits(20_000, 20_800), seed=0)
    assert max(seen) <= 100  # noise comes in pairs


class Dimmed(nn.Module):
    def __init__(self, net: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place = net, in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mul_(0.9) if self.in_place else x * 0.9)


@every_kind
def test_a_net_that_works_in_place_is_defended_as_one_that_does_not(
    build: Callable[..., Any], train_digits: Digits, digits: tuple[Tensor, Tensor], net: nn.Module, kind: str
) -> None:
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        defense = build(kind, Dimmed(net, in_place=in_place).eval())
        clean, held_out = train_digits(0, 600), train_digits(20_000, 20_600)
        before = clean[0].clone(), held_out[0].clone()
        defense.fit(clean=clean, held_out=held_out, seed=0)
        assert torch.equal(clean[0], before[0])
        assert torch.equal(held_out[0], before[1])
        found.append(defense.eval()(digits[0][:20].clone()))
    assert torch.equal(*found)
