"""PCL, the prototype conformity loss: features near the prototype of their class and far from the others."""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.checks import check_integer, check_positive
from robustlit.objectives.objective import ObjectiveOutput

PROTOTYPE_RATE = 0.5  # the authors' learning rate of the prototypes (lr_prox in their pcl_training.py)


class PCL(nn.Module):
    """Cross-entropy + attract ||f - w_y||^2 - repel * mean over other classes j of (||f - w_j||^2 + ||w_y - w_j||^2).

    Mustafa, Khan, Hayat, Goecke, Shen, Shao: Adversarial defense by restricting the hidden space of deep neural
    networks, 2019, arXiv:1904.00887 (reference 7 of the 2019 report); code: aamir-mustafa/pcl-adversarial-defense. The
    features f are the inputs of the last linear layer. As in the authors' code the two terms have weights of their own
    (with the same weight the loss has no lower bound) and the prototypes w take gradient steps of rate .5 on the first
    term; here both terms share the prototypes, as in the paper. The paper adds the same loss at an earlier layer.

    It is no defense: of the authors' CIFAR-10 net AutoAttack leaves .28 % (Croce, Hein 2020, arXiv:2003.01690). The
    prototypes are a buffer, so that a checkpoint keeps them and a resumed training goes on exactly.

    Args:
        features: Number of features D: inputs of the classifier's last linear layer.
        num_classes: K, at least 2.
        attract: Weight of the distance to the own prototype, positive; 1 in the authors' code.
        repel: Weight of the distances to the others, at least 0; 1e-4 in the authors' code.

    Raises:
        ValueError: An argument out of range; when called, a classifier without a linear layer, with other features or
            another number of classes.
    """

    prototypes: Tensor  # (K, D)

    def __init__(self, features: int, num_classes: int = 10, attract: float = 1.0, repel: float = 1e-4) -> None:
        super().__init__()
        check_integer("features", features, 1, "the inputs of the classifier's last linear layer")
        check_integer("num_classes", num_classes, 2, "a classifier needs two classes or more")
        check_positive(attract, "attract", "; Standard() is cross-entropy alone")
        if not 0 <= repel < attract:
            raise ValueError(f"repel must be in [0, attract), got {repel}: above it the loss has no lower bound")
        self.attract, self.repel = attract, repel
        self.register_buffer("prototypes", torch.randn(num_classes, features))

    def forward(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of (B, C, H, W) images and (B,) classes; in training the prototypes take a step."""
        logits, features = self._run(classifier, x)
        prototypes = self.prototypes.clone()  # the backward pass comes after their step
        own, others = squared_distances(features, prototypes, y)
        spread = squared_distances(prototypes[y], prototypes, y)[1]
        loss = F.cross_entropy(logits, y) + self.attract * own.mean() - self.repel * (others + spread).mean()
        if torch.is_grad_enabled():
            self._step(features.detach(), y)
        return {"loss": loss, "logits": logits}

    def _run(self, classifier: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K) and the features (B, D), float32 or wider."""
        linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"PCL needs a classifier with a linear layer, {type(classifier).__name__} has none")
        seen: list[Tensor] = []
        with ExitStack() as stack:
            handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            stack.callback(handle.remove)
            logits = classifier(x)
        classes, size = self.prototypes.shape
        if not seen or seen[-1].ndim != 2 or seen[-1].shape[1] != size or logits.shape[1] != classes:
            there = f"{tuple(seen[-1].shape)} features" if seen else "a last linear layer that it does not call"
            raise ValueError(
                f"PCL has prototypes for {classes} classes of {size} features, {type(classifier).__name__} has "
                f"{logits.shape[1]} classes and {there}; set objective.features and objective.num_classes"
            )
        return logits, seen[-1].to(self.prototypes.dtype)

    @torch.no_grad()
    def _step(self, features: Tensor, y: Tensor) -> None:
        """Take a gradient step on mean ||f - w_y||^2: a prototype moves by its share of the batch."""
        gradient = torch.zeros_like(self.prototypes).index_add_(0, y, 2 * (self.prototypes[y] - features) / len(y))
        self.prototypes -= PROTOTYPE_RATE * gradient


def squared_distances(features: Tensor, prototypes: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances (B,) of features (B, D) to prototypes y of (K, D), and means (B,) to the others."""
    own = (features - prototypes[y]).square().sum(1)
    with torch.autocast(features.device.type, enabled=False):  # they are differences of large numbers
        every = torch.cdist(features, prototypes).square()  # (B, K)
    return own, (every.sum(1) - own) / (len(prototypes) - 1)
