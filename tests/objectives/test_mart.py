"""MART against its formula written out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlit.attacks import PGD
from robustlit.objectives import MART
from robustlit.objectives.mart import boosted_cross_entropy


def test_the_loss_is_the_formula(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    objective = MART(PGD(eps=0.1, steps=4), weight=3.0)
    x_adv = objective.worst_inputs(net, x, y)
    output = objective.loss_at(net, x, x_adv, y)
    p, q = net(x).double().softmax(1), net(x_adv).double().softmax(1)
    rows = torch.arange(32)
    rival = q.scatter(1, y.unsqueeze(1), 0).amax(1)
    boosted = -q[rows, y].log() - (1 - rival).log()
    robust = (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    torch.testing.assert_close(output["loss"].double(), (boosted + 3 * robust).mean(), rtol=1e-4, atol=1e-4)
    assert torch.equal(output["logits"], net(x_adv))


def test_the_boosted_cross_entropy_is_finite_at_a_certain_mistake() -> None:
    logits = torch.tensor([[0.0, 90.0, 0.0], [90.0, 0.0, 0.0]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    loss.backward()
    torch.testing.assert_close(loss.item(), (90 + 90 - torch.log(torch.tensor(2.0)).item()) / 2)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] > 0.9  # both halves push the wrong class down
