"""Standard and adversarial training against their formulas written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import BIM, FGSM, PGD
from robustlit.attacks.ascent import GradientAscent
from robustlit.objectives import TRADES, AdversarialTraining, LabelSmoothing, Objective, SoftLabelEmbedding, Standard
from robustlit.objectives.objective import Scheduled
from robustlit.threat import distance


def test_standard_is_the_mean_cross_entropy(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    objective: Objective = Standard()
    output = objective(net, x, y)
    assert torch.equal(output["logits"], net(x))
    torch.testing.assert_close(output["loss"], -net(x).log_softmax(1)[torch.arange(32), y].mean())
    assert output["loss"].requires_grad
    assert not isinstance(objective, Scheduled)


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(eps=0.1, random_start=True, step_size=0.125),
        BIM(eps=0.1, steps=4),
        PGD(eps=0.1, steps=4),
        PGD(eps=1.0, norm="l2", steps=4),
    ],
    ids=str,
)
def test_adversarial_training_learns_from_points_of_the_ball(
    attack: GradientAscent, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:64], digits[1][:64]
    inputs: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
    output = AdversarialTraining(attack)(net, x, y)
    seen = inputs[-1]
    assert (distance(seen, x, attack.norm) <= attack.eps + 1e-6).all()
    assert seen.min() >= 0
    assert seen.max() <= 1
    torch.testing.assert_close(output["logits"], net(seen))
    torch.testing.assert_close(output["loss"], F.cross_entropy(net(seen), y))
    assert output["loss"] > 2 * F.cross_entropy(net(x), y)
    # It raises the loss of every example, not only of the batch.
    raised = F.cross_entropy(net(seen), y, reduction="none") >= F.cross_entropy(net(x), y, reduction="none")
    assert raised.all()
    assert torch.equal(x, digits[0][:64])


@pytest.mark.parametrize("objective", [Standard(), AdversarialTraining(PGD(eps=0.15, steps=5))], ids=["std", "adv"])
def test_some_steps_lower_the_loss(objective: Objective) -> None:
    x = torch.rand(64, 1, 6, 6)
    y = (x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2))).long()
    halves = torch.tensor([1.0] * 3 + [-1.0] * 3).view(6, 1)
    x = (x + torch.where(y.bool(), 0.3, -0.3).view(-1, 1, 1, 1) * halves).clamp(0, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective(model, x, y)["loss"]
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_the_outer_objective_takes_the_place_of_cross_entropy(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:32], digits[1][:32]
    attack = PGD(eps=0.1, steps=2, random_start=False)
    matrix = (torch.eye(10) + 0.1).tolist()
    for outer in (LabelSmoothing(0.2), SoftLabelEmbedding(matrix, floor=0.5)):
        adversarial = AdversarialTraining(attack, outer=outer)
        x_adv = adversarial.worst_inputs(net, x, y)
        expected = outer(net, x_adv, y)
        found = adversarial(net, x, y)
        torch.testing.assert_close(found["loss"], expected["loss"])
        torch.testing.assert_close(found["logits"], net(x_adv))
        plain = AdversarialTraining(attack)(net, x, y)
        torch.testing.assert_close(plain["loss"], F.cross_entropy(net(x_adv), y))
        assert (found["loss"] - plain["loss"]).abs() > 0.1
        trades, smooth = TRADES(attack, beta=2.0, start_noise=0), TRADES(attack, beta=2.0, start_noise=0, outer=outer)
        apart = smooth(net, x, y)["loss"] - trades(net, x, y)["loss"]
        torch.testing.assert_close(apart, outer(net, x, y)["loss"] - F.cross_entropy(net(x), y))
