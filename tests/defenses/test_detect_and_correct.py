"""DetectAndCorrect: which part classifies which image, and that the whole can be attacked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import BIM, PGD
from robustlit.classifier import attack_view, is_stochastic
from robustlit.defenses import DetectAndCorrect, LogitSVC, OddsTest
from robustlit.models import SmallCNN

Digits = Callable[[int, int], tuple[Tensor, Tensor]]


@pytest.fixture
def defense(fitted: Callable[[str], DetectAndCorrect]) -> DetectAndCorrect:
    return fitted("DetectAndCorrect")


def test_the_corrector_classifies_flagged_images_and_the_net_the_others(
    defense: DetectAndCorrect, train_digits: Digits
) -> None:
    x, _ = train_digits(30_000, 30_300)
    logits, excess = defense.detection(x)
    flagged = excess >= 0
    assert 20 < flagged.sum() < 150
    output = defense(x)
    assert torch.equal(output[~flagged], defense.net(x)[~flagged])
    assert torch.equal(output[flagged].argmax(1), defense.svc(logits[flagged]).argmax(1))
    assert (output.argmax(1) != logits.argmax(1))[flagged].any()


def test_to_reject_adds_a_column(defense: DetectAndCorrect, build: Callable[..., Any], train_digits: Digits) -> None:
    x, _ = train_digits(30_000, 30_100)
    rejecting = build("DetectAndCorrect", SmallCNN(), reject=True)
    rejecting.load_state_dict(defense.state_dict())
    rejecting.eval()
    assert (rejecting.rejects, defense.rejects) == (True, False)
    assert torch.equal(rejecting(x).argmax(1) == 10, defense.detection(x)[1] >= 0)
    assert attack_view(rejecting) is rejecting


def test_the_view_decides_as_the_defense_does_and_has_gradients_on_both_sides(
    defense: DetectAndCorrect, train_digits: Digits
) -> None:
    x, _ = train_digits(30_000, 30_300)
    view = attack_view(defense)
    sure = defense.detection(x)[1].abs() > 1
    agree = view(x).argmax(1) == defense(x).argmax(1)
    assert agree[sure].double().mean() > 0.9
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(view(leaf).amax(1).sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().sum(1).min() > 0


def test_the_view_sees_the_detector(defense: DetectAndCorrect, train_digits: Digits) -> None:
    class Blind(DetectAndCorrect):  # the same decision, but no gradient through the detector's score
        def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, excess = super().detection(x)
            return logits, excess.detach()

    x, _ = train_digits(30_000, 30_050)
    blind = copy.deepcopy(defense)
    blind.__class__ = Blind
    outputs, gradients = [], []
    for model in (defense, blind):
        leaf = x.clone().requires_grad_(True)
        outputs.append(attack_view(model)(leaf))
        gradients.append(torch.autograd.grad(outputs[-1].amax(1).sum(), leaf)[0].flatten(1))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert ((gradients[0] - gradients[1]).norm(dim=1) > 0.1 * gradients[1].norm(dim=1)).sum() > 5


@pytest.mark.slow
def test_a_grey_box_attack_overstates_and_the_adaptive_one_shows_it(
    defense: DetectAndCorrect, train_digits: Digits
) -> None:
    data, bim = train_digits(30_000, 30_100), BIM(eps=0.3, steps=10)
    grey = evaluate(defense, data, [bim], knowledge=["greybox"])
    adaptive = evaluate(defense, data, [PGD(eps=0.3, steps=20)], knowledge=["adaptive"])
    plain = evaluate(defense.net, data, [bim])
    assert plain.accuracy(eps=0.3) < 0.05
    assert grey.accuracy(attack="bim", eps=0.3, knowledge="greybox") > plain.accuracy(eps=0.3)
    assert adaptive.accuracy(eps=0.3) < 0.1


def test_with_fresh_noise_it_is_stochastic(net: nn.Module, train_digits: Digits) -> None:
    defense = DetectAndCorrect(net, OddsTest(0.1, scales=(0.01,), samples=4), LogitSVC(), examples=200)
    defense.fit(clean=train_digits(0, 800), held_out=train_digits(20_000, 20_200))
    x, _ = train_digits(30_000, 30_020)
    assert is_stochastic(defense)
    assert defense.draws * 4 >= 20
    assert not torch.equal(defense.detection(x)[1], defense.detection(x)[1])
