"""PCL: the loss by hand, and the prototypes' step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.models import SmallCNN
from robustlit.objectives import PCL
from robustlit.objectives.pcl import PROTOTYPE_RATE


class TwoFeatures(nn.Module):
    """Features are the image's two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def made() -> tuple[PCL, TwoFeatures, Tensor, Tensor]:
    torch.manual_seed(0)
    objective = PCL(features=2, num_classes=3, attract=2.0, repel=0.25)
    objective.prototypes.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    return objective, TwoFeatures(), torch.tensor([[0.5, 0.5], [1.0, 1.0]]).view(2, 1, 1, 2), torch.tensor([0, 1])


def test_the_loss_by_hand() -> None:
    objective, net, x, y = made()
    output = objective(net, x, y)
    own = (0.5 + 1) / 2
    others = ((0.5 + 2.5) / 2 + (2 + 2) / 2) / 2
    between = ((1 + 4) / 2 + (1 + 5) / 2) / 2
    wanted = F.cross_entropy(net(x), y) + 2 * own - 0.25 * (others + between)
    torch.testing.assert_close(output["loss"], wanted)
    torch.testing.assert_close(output["logits"], net(x))


def test_prototypes_move_towards_their_class_in_training_alone() -> None:
    objective, net, x, y = made()
    before = objective.prototypes.clone()
    with torch.no_grad():
        objective(net, x, y)
    torch.testing.assert_close(objective.prototypes, before)
    objective(net, x, y)["loss"].backward()  # the step does not disturb the backward pass
    moved = before.clone()
    moved[:2] -= PROTOTYPE_RATE * 2 * (before[:2] - x.flatten(1)) / 2
    torch.testing.assert_close(objective.prototypes, moved)


def test_features_are_trained() -> None:
    torch.manual_seed(0)
    net, objective = SmallCNN(), PCL(features=100)
    objective(net, torch.rand(4, 1, 28, 28), torch.arange(4))["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.features.parameters())
    assert "prototypes" in objective.state_dict()  # a checkpoint keeps them


def test_what_does_not_fit_is_named() -> None:
    x, y = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=r"10 classes of 512 features, SmallCNN has 10 classes and \(2, 100\) features"
    ):
        PCL(features=512)(SmallCNN(), x, y)
    with pytest.raises(ValueError, match="Flatten has none"):
        PCL(features=784)(nn.Flatten(), x, y)
    with pytest.raises(ValueError, match="above it the loss has no lower bound"):
        PCL(features=2, repel=1.0)
