"""The contracts of a classifier and of a defended one, so that attacks need not know defenses.

A classifier is any `nn.Module` from images (B, C, H, W) in [0, 1] to logits (B, K). A defended classifier answers
three more questions; the functions below answer them for a plain one, so that callers never test for the type. Each
question is asked on its own: a defense that answers only one, or stands behind a wrapper that passes attributes on
(`torch.compile`), must not be taken for a plain net and attacked the weak way.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

DRAWS = 20  # of a stochastic model, for one gradient, unless it says otherwise


@runtime_checkable
class DefendedClassifier(Protocol):
    """A classifier behind a defense, as a white-box attacker and an honest evaluation need it.

    `forward` is what is deployed: every success is judged on it alone.
    """

    stochastic: bool
    """True when two forwards of one input may differ: attacks then average gradients over draws."""
    # May have `rejects = True` besides (see `can_reject`), `draws` (see `draws_of`) and `detection` (see `Detecting`).

    def forward(self, x: Tensor) -> Tensor: ...

    def attack_view(self) -> nn.Module:
        """The differentiable twin through which an adaptive attacker takes gradients; may be the model itself."""
        ...

    def undefended(self) -> nn.Module:
        """The classifier without the defense, on which a grey-box attacker crafts."""
        ...


@runtime_checkable
class Detecting(Protocol):
    """A defended classifier with a detector that a joint attack can differentiate."""

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier's own logits (B, K), and by how much the detector's score exceeds its threshold (B,).

        At 0 and above an image is flagged. Both are differentiable with respect to `x`.
        """
        ...


def attack_view(model: nn.Module) -> nn.Module:
    """What an adaptive attacker differentiates: the defense's own twin, or the model itself."""
    answer = getattr(model, "attack_view", None)
    return answer() if callable(answer) else model


def undefended(model: nn.Module) -> nn.Module:
    """The model without its defense, or the model itself."""
    answer = getattr(model, "undefended", None)
    return answer() if callable(answer) else model


def is_stochastic(model: nn.Module) -> bool:
    """Whether two forwards of one input may differ by design."""
    return getattr(model, "stochastic", False) is True


def can_reject(model: nn.Module) -> bool:
    """Whether the last of the model's logits is no class, but its refusal to name one (`model.rejects`).

    For a defense a refusal is a success on an adversarial image, and an error on a clean one.
    """
    return getattr(model, "rejects", False) is True


def draws_of(model: nn.Module) -> int:
    """Over how many draws an attack averages gradients: 1 for a deterministic model, else its `draws` or 20."""
    if not is_stochastic(model):
        return 1
    draws = getattr(model, "draws", DRAWS)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(
            f"draws of {type(model).__name__} must be a whole number of at least 1, got {draws!r}: over how many draws "
            "attacks average gradients"
        )
    return draws


def check_logits(logits: object, batch: int) -> Tensor:
    """Returns `logits` if they are (batch, K) with K >= 2, else raises a ValueError that names what came out."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model must return logits (B, K), got {type(logits).__name__}; wrap it in a module that returns "
            "the logits alone"
        )
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] < 2:
        raise ValueError(
            f"the model must return logits (B, K) with K >= 2 for a batch of {batch}, got shape {tuple(logits.shape)}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"the model must return logits, got {logits.dtype}; return its scores, not the class it chose")
    return logits


def check_labels(y: Tensor, batch: int, num_classes: int | None = None, name: str = "labels") -> None:
    """Raises unless `y` is (batch,) of integers in [0, num_classes)."""
    if y.shape != (batch,):
        raise ValueError(f"{name} must have shape ({batch},) to match the images, got {tuple(y.shape)}")
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"{name} must be integers, got {y.dtype}")
    if num_classes is not None and batch:
        low, high = (int(v) for v in y.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} must lie in [0, {num_classes - 1}] for a model with {num_classes} outputs, "
                f"found values in [{low}, {high}]"
            )
