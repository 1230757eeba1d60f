"""TRADES against its formula written out, and where its inner attack starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import BIM, PGD
from robustlit.objectives import TRADES
from robustlit.objectives.inner import divergence
from robustlit.threat import distance


def test_divergence_is_torchs() -> None:
    clean, attacked = torch.randn(7, 5), torch.randn(7, 5)
    expected = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(divergence(clean, attacked), expected)


def test_the_loss_is_the_formula(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    objective = TRADES(PGD(eps=0.1, steps=4), beta=2.5)
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


def test_the_attack_maximises_the_divergence_without_the_labels(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
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


@pytest.mark.parametrize(
    ("attack", "noise", "start"),
    [
        (BIM(eps=0.1, steps=3), 1e-3, 1e-3),  # at the image the divergence is flat, and its gradient rounding error
        (BIM(eps=0.1, steps=3), 0.0, 0.0),
        (PGD(eps=0.1, steps=3), 1e-3, 0.1 / 3**0.5),  # its own random start, uniform in the ball
    ],
    ids=["noise", "image", "random"],
)
def test_where_the_attack_starts(
    attack: BIM | PGD, noise: float, start: float, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:32] * 0.5 + 0.25, digits[1][:32]  # away from 0 and 1, where starts are clipped
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    found = TRADES(attack, start_noise=noise).worst_inputs(net, x, y)
    assert torch.equal(seen[0], x)  # the prediction to move away from
    assert float((seen[1] - x).std()) == pytest.approx(start, rel=0.02)
    assert (distance(found, x, "linf") <= 0.1 + 1e-6).all()
