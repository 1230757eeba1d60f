"""The contract of an objective."""

from __future__ import annotations

from typing import Protocol, TypedDict, runtime_checkable

from torch import Tensor, nn


class ObjectiveOutput(TypedDict):
    """What an objective returns.

    loss: Scalar to minimise. logits: (B, K) of the inputs that were trained on, or the worst that bounds allow, for the
    training accuracy.
    """

    loss: Tensor
    logits: Tensor


class Objective(Protocol):
    """Any callable of this form is an objective."""

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of a batch.

        Args:
            classifier: From images (B, C, H, W) in [0, 1] to logits (B, K).
            x: Images (B, C, H, W) in [0, 1].
            y: (B,) true classes.
        """
        ...


@runtime_checkable
class Scheduled(Protocol):
    """An objective that changes during training."""

    def set_progress(self, fraction: float) -> None:
        """Set the share of the training steps done, in [0, 1], before each step."""
        ...


@runtime_checkable
class MinMax(Protocol):
    """An objective in two halves, so that inputs can be attacked at other weights than the loss is taken at."""

    def worst_inputs(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial versions (B, C, H, W) of the images, detached."""
        ...

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the loss of a batch, given its adversarial versions."""
        ...
