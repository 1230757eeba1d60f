"""The interface of a classifier and of a defended classifier, so that attacks need not know defenses.

A classifier is any `nn.Module` from images (B, C, H, W) in [0, 1] to logits (B, K). A defended classifier has a few
attributes more; the functions below also work for a plain one, so that callers never test for the type. Each attribute
is looked up by itself: a defense that has only one of them, or is wrapped by a module that passes attributes on
(`torch.compile`), must not be attacked as if it had none.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

NO_CLASS = -1  # the prediction of a model whose logits name no class
_DEFENDED = ("attack_view", "undefended", "stochastic", "rejects")
DRAWS = 20  # draws of a stochastic model for one gradient, unless it has `draws`


@runtime_checkable
class DefendedClassifier(Protocol):
    """A classifier with a defense, as white-box attacks and evaluations need it; `forward` alone judges success."""

    stochastic: bool  # True when two forwards of one input may differ: attacks then average gradients over draws
    # May have `rejects = True` besides (see `can_reject`), `draws` (see `draws_of`) and `detection` (see `Detecting`).

    def forward(self, x: Tensor) -> Tensor: ...

    def attack_view(self) -> nn.Module:
        """Return the differentiable model that an adaptive attacker takes gradients of; may be the model itself."""
        ...

    def undefended(self) -> nn.Module:
        """Return the classifier without the defense, on which a grey-box attacker crafts."""
        ...


@runtime_checkable
class Detecting(Protocol):
    """A defended classifier with a detector that a joint attack can differentiate."""

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K), and the score minus its threshold (B,), flagged from 0; both differentiable."""
        ...


def attack_view(model: nn.Module) -> nn.Module:
    """Return the model's attack view, which an adaptive attacker differentiates, or the model itself."""
    answer = getattr(model, "attack_view", None)
    return answer() if callable(answer) else model


def undefended(model: nn.Module) -> nn.Module:
    """Return the model without its defense, or the model itself."""
    answer = getattr(model, "undefended", None)
    return answer() if callable(answer) else model


def is_stochastic(model: nn.Module) -> bool:
    """Return whether two forwards of one input may differ by design."""
    return getattr(model, "stochastic", False) is True


def can_reject(model: nn.Module) -> bool:
    """Return whether the last logit is the model's refusal to name a class: right on adversarial images only."""
    return getattr(model, "rejects", False) is True


def draws_of(model: nn.Module) -> int:
    """Return the number of draws that attacks average gradients over: 1 if deterministic, else its `draws` or 20."""
    if not is_stochastic(model):
        return 1
    draws = getattr(model, "draws", DRAWS)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(
            f"draws of {type(model).__name__} must be a whole number of at least 1, got {draws!r}: over how many draws "
            "attacks average gradients"
        )
    return draws


def check_not_hidden(model: nn.Module) -> None:
    """Raise a ValueError for a plain module around a defended classifier, such as `nn.Sequential(defense)`.

    It hides what the defense says of itself, and would be attacked as a plain net: the defense would look better.
    """
    if any(hasattr(model, name) for name in _DEFENDED):
        return
    for inner in model.modules():
        # Some views are the module itself, whose gradients work anywhere: of `robustlit.attacks.BPDA` around a layer.
        replaced = attack_view(inner) is not inner or undefended(inner) is not inner
        if inner is not model and (replaced or is_stochastic(inner) or can_reject(inner)):
            raise ValueError(
                f"{type(model).__name__} hides the {type(inner).__name__} inside it, so that attacks would take it for "
                "a plain net: pass the defense itself (of nn.DataParallel or AveragedModel, its .module), or give the "
                "module around it attack_view(), undefended() and stochastic of its own"
            )


def check_logits(logits: object, batch: int) -> Tensor:
    """Return `logits` if they are (batch, K) with K >= 2, else raise a ValueError with what the model returned."""
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


def names_class(logits: Tensor) -> Tensor:
    """Return (B,) bool, whether logits (B, K) name a class: none is NaN, and the largest is finite or the only +inf.

    A deployed model gives no answer elsewhere, so it counts as wrong there. An impossible class may have -inf.
    """
    largest = logits.amax(1)  # NaN where any is
    return largest.isfinite() | ((largest == math.inf) & ((logits == math.inf).sum(1) == 1))


def predicted(logits: Tensor) -> Tensor:
    """Return (B,) the class that logits (B, K) name, `NO_CLASS` where they name none (see `names_class`)."""
    return torch.where(names_class(logits), logits.argmax(1), NO_CLASS)


def check_labels(y: Tensor, batch: int, num_classes: int | None = None, name: str = "labels") -> None:
    """Raise a ValueError unless `y` is (batch,) of integers in [0, num_classes)."""
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


def check_finite(net: nn.Module, where: str, error: type[Exception]) -> None:
    """Raise an `error` unless every parameter of a net is finite and no buffer holds NaN; `where` begins the message.

    A buffer may hold infinity, as the mask of an attention does.
    """
    wrong = [name for name, value in net.named_parameters() if not bool(value.isfinite().all())]
    if wrong := wrong + [name for name, value in net.named_buffers() if bool(value.isnan().any())]:
        raise error(
            f"{where} weights that are not finite ({abbreviated(wrong)}): the net is broken; take an earlier "
            "checkpoint, or train again with a lower optimizer.lr"
        )


def abbreviated(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
