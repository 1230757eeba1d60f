"""Adversarial weight perturbation: train on the loss at the worst weights near the current ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustlit.checks import check_positive
from robustlit.objectives.objective import MinMax, Objective, ObjectiveOutput, Scheduled

_LossOf = Callable[[nn.Module], ObjectiveOutput]


@dataclass
class AdversarialWeightPerturbation:
    """Any objective, at weights moved against it: each layer by gamma times its norm, along the gradient of the loss.

    Wu, Xia, Wang: Adversarial weight perturbation helps robust generalization, 2020, arXiv:2004.05884 (algorithm 1,
    with one step for the weights as in the authors' code). The inputs are attacked at the current weights; the current
    weights are then updated by the gradient of the loss at the moved weights. The moved weights are other tensors,
    through which the gradient flows to the parameters, so nothing has to be restored. Parameters of one dimension
    (biases, normalisation) are not moved. A step costs one more forward and backward of the loss.

    Args:
        objective: What is minimised. One in two halves (`MinMax`) is attacked once a step; any other is called twice.
        gamma: Length of the move relative to each layer's own norm, positive; the paper takes .01 for adversarial
            training and .005 for TRADES.
        start: Share of the training steps, in [0, 1), before it begins.

    Raises:
        ValueError: gamma not positive, start outside [0, 1).
    """

    objective: Objective
    gamma: float = 5e-3
    start: float = 0.0
    _begun: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.objective):
            raise ValueError(f"objective must be an objective, got {self.objective!r}")
        check_positive(self.gamma, "gamma", "; it is a share of a layer's norm, .005 is usual")
        if not 0 <= self.start < 1:
            raise ValueError(f"start must be a share of the training steps in [0, 1), got {self.start}")
        self._begun = self.start == 0

    def set_progress(self, fraction: float) -> None:
        """Set the share of the training steps done, in [0, 1], here and in the objective."""
        self._begun = fraction >= self.start
        if isinstance(self.objective, Scheduled):
            self.objective.set_progress(fraction)

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the objective's output for (B, C, H, W) images and (B,) classes, at the moved weights."""
        if not self._begun:
            return self.objective(classifier, x, y)
        if isinstance(self.objective, MinMax):
            inputs, halves = self.objective.worst_inputs(classifier, x, y), self.objective

            def loss(net: nn.Module) -> ObjectiveOutput:
                return halves.loss_at(net, x, inputs, y)
        else:

            def loss(net: nn.Module) -> ObjectiveOutput:
                return self.objective(net, x, y)

        moves = worst_moves(classifier, loss, self.gamma, x.device.type)
        weights = dict(classifier.named_parameters())
        return _evaluated_at({name: weights[name] + move for name, move in moves.items()}, classifier, loss)


def worst_moves(classifier: nn.Module, loss: _LossOf, gamma: float, device: str = "cpu") -> dict[str, Tensor]:
    """Return by name how each weight of two or more dimensions moves: gamma |w| g / |g|, g the gradient of the loss.

    The classifier is not changed: BatchNorm updates copies of its averages, and `.grad` stays untouched.
    """
    weights = {
        name: p.detach().requires_grad_(True)
        for name, p in classifier.named_parameters()
        if p.requires_grad and p.ndim > 1
    }
    copies = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    with _wide_enough(device):
        value = _evaluated_at({**weights, **copies}, classifier, loss)["loss"]
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    moves = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is not None:
            length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)  # a zero gradient moves nothing
            moves[name] = gradient * (gamma * weight.detach().norm() / length)
    return moves


def _wide_enough(device: str) -> AbstractContextManager[object]:
    """Turn off autocast to float16, whose gradients underflow without the scaler; keep any other precision."""
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16:
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _evaluated_at(tensors: Mapping[str, Tensor], classifier: nn.Module, loss: _LossOf) -> ObjectiveOutput:
    """Return `loss(classifier)` with the named parameters and buffers of the classifier replaced by `tensors`."""
    named = {f"classifier.{name}": tensor for name, tensor in tensors.items()}
    output: ObjectiveOutput = functional_call(_Evaluation(classifier, loss), named, ())
    return output


class _Evaluation(nn.Module):
    # A module whose forward is the whole loss, so that every method the objective calls sees the replaced tensors.
    def __init__(self, classifier: nn.Module, loss: _LossOf) -> None:
        super().__init__()
        self.classifier, self._loss = classifier, loss

    def forward(self) -> ObjectiveOutput:
        return self._loss(self.classifier)
