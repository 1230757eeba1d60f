"""The contract of an objective."""

from __future__ import annotations

from typing import Protocol, TypedDict, runtime_checkable

from torch import Tensor, nn


class ObjectiveOutput(TypedDict):
    """What a training step gets back.

    loss: scalar to minimise. logits: (B, K) of the inputs that were trained on, for the training accuracy.
    """

    loss: Tensor
    logits: Tensor


class Objective(Protocol):
    """Any callable of this form is an objective."""

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor) -> ObjectiveOutput:
        """The loss of a batch.

        Args:
            classifier: from images (B, C, H, W) in [0, 1] to logits (B, K).
            x: images (B, C, H, W) in [0, 1].
            y: (B,) true classes.
        """
        ...


@runtime_checkable
class Scheduled(Protocol):
    """An objective that changes during training; told before each step how far training has come."""

    def set_progress(self, fraction: float) -> None:
        """`fraction` of the training steps done, in [0, 1]."""
        ...
