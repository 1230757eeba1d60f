"""Carlini and Wagner: confidence, the scale of the logits, and what a failure returns."""

from __future__ import annotations

import pytest
import torch
from cases import Function, Linear
from torch import Tensor, nn

from robustlit.attacks.carlini_wagner import CarliniWagner


@pytest.mark.slow
def test_the_adversarial_example_keeps_the_confidence(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:10], net(digits[0][:10]).argmax(1)
    sure = CarliniWagner(confidence=3.0).run(net, x, y)
    logits = net(sure.x_adv)
    assert sure.success.all()
    assert (logits.amax(1) - logits.gather(1, y.unsqueeze(1)).squeeze(1) >= 3 - 1e-3).all()  # before the true class
    assert (sure.distance > CarliniWagner(steps=60).run(net, x, y).distance).float().mean() > 0.9


def test_the_scale_of_the_logits_does_not_matter(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:10], net(digits[0][:10]).argmax(1)
    attack = CarliniWagner(steps=50, searches=4)
    plain, scaled = attack.run(net, x, y), attack.run(Function(lambda z: net(z) * 1000), x, y)
    assert scaled.success.all()
    torch.testing.assert_close(scaled.distance.median(), plain.distance.median(), rtol=0.02, atol=0)


def test_a_failure_returns_an_attempt() -> None:
    weight = torch.zeros(2, 9)
    weight[1] = 1.0  # class 1 would need a sum of 50
    x = torch.full((2, 1, 3, 3), 0.5)
    result = CarliniWagner(steps=40).run(Linear(weight, torch.tensor([50.0, 0.0])), x, torch.tensor([0, 0]))
    assert not result.success.any()
    assert (result.x_adv.flatten(1).mean(1) > 0.7).all()  # it has moved towards class 1
