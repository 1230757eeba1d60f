"""The interface of a classifier and of a defended classifier, so that attacks need not know defenses.

A classifier is any `nn.Module` from images (B, C, H, W) in [0, 1] to logits (B, K). A defended classifier has a few
attributes more; the functions below also work for a plain one, so that callers never test for the type. Each attribute
is looked up by itself: a defense that has only one of them, or is wrapped by a module that passes attributes on
(`torch.compile`), must not be attacked as if it had none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.swa_utils import AveragedModel

NO_CLASS = -1  # the prediction of a model whose logits name no class
_DEFENDED = ("attack_view", "undefended", "stochastic", "rejects")
_MOST_HELD = 1000  # entries of a list that are looked at: a longer one holds data
_TRANSPARENT = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)  # they call their `module`
_HIDDEN = (
    "{outer} hides the {inner} inside it, so that attacks would take it for a plain net: pass the defense itself (of a "
    "LightningModule, its net), or give the module around it attack_view(), undefended() and stochastic of its own"
)
writes = attrgetter("_version")  # how often a tensor was written to; PyTorch has no public name for it
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


def unwrapped(model: Any) -> Any:
    """Return the module that a wrapper calls on its input as it is, or the model itself where it is no such wrapper.

    Of nn.DataParallel, DistributedDataParallel, AveragedModel, `torch.compile` and an nn.Sequential of one module; not
    where it was given an attribute of a defended classifier itself.
    """
    while isinstance(model, nn.Module) and not any(name in vars(model) for name in _DEFENDED):
        inside = dict(model.named_children())
        if type(model) in _TRANSPARENT:
            model = inside["module"]
        elif "_orig_mod" in inside:
            model = inside["_orig_mod"]
        elif type(model) is nn.Sequential and len(model) == 1:
            model = model[0]
        else:
            break
    return model


def _asked(model: nn.Module, name: str) -> nn.Module:
    inner = unwrapped(model)
    answer = getattr(inner, name, None)
    found = answer() if callable(answer) else inner
    return model if found is inner else found


def attack_view(model: nn.Module) -> nn.Module:
    """Return the model's attack view, which an adaptive attacker differentiates, or the model itself."""
    return _asked(model, "attack_view")


def undefended(model: nn.Module) -> nn.Module:
    """Return the model without its defense, or the model itself."""
    return _asked(model, "undefended")


def is_stochastic(model: nn.Module) -> bool:
    """Return whether two forwards of one input may differ by design."""
    return getattr(unwrapped(model), "stochastic", False) is True


def can_reject(model: nn.Module) -> bool:
    """Return whether the last logit is the model's refusal to name a class: right on adversarial images only."""
    return getattr(unwrapped(model), "rejects", False) is True


def draws_of(model: nn.Module) -> int:
    """Return the number of draws that attacks average gradients over: 1 if deterministic, else its `draws` or 20."""
    if not is_stochastic(model):
        return 1
    draws = getattr(unwrapped(model), "draws", DRAWS)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(
            f"draws of {type(model).__name__} must be a whole number of at least 1, got {draws!r}: over how many draws "
            "attacks average gradients"
        )
    return draws


def check_not_hidden(model: nn.Module) -> None:
    """Raise a ValueError for a plain module around a defended classifier, such as `nn.Sequential(blur, defense)`.

    It hides what the defense says of itself, and would be attacked as a plain net: the defense would look better. The
    defense may also be held in a list, a dict, a partial, a closure or as a bound method.
    """
    if _is_plain(model):
        for inner in _held(model, set()):
            if inner is not model and (_says_more(inner, model) or undefended(inner) is not inner):
                raise ValueError(_HIDDEN.format(outer=type(model).__name__, inner=type(inner).__name__))


@contextmanager
def watched(net: nn.Module, model: nn.Module) -> Iterator[None]:
    """Raise a ValueError if a forward of `net` calls a defense that attacks on `model` do not know of.

    This finds one that `check_not_hidden` cannot see, such as a global, or in the attack view of a wrapper. `net` is
    the model or its attack view. Compiled nets are not watched.
    """
    compiled = any("_orig_mod" in dict(m.named_children()) or vars(m).get("_compiled_call_impl") for m in net.modules())
    if compiled or not _is_plain(net):
        yield
        return

    def look(inner: nn.Module, inputs: object) -> None:
        if inner is not net and _says_more(inner, model):
            raise ValueError(_HIDDEN.format(outer=type(net).__name__, inner=type(inner).__name__))

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _is_plain(model: nn.Module) -> bool:
    return not any(hasattr(unwrapped(model), name) for name in _DEFENDED)


def _says_more(inner: nn.Module, model: nn.Module) -> bool:
    """Return whether `inner` has an attack view, or declares something of itself that `model` does not."""
    if (is_stochastic(inner) and not is_stochastic(model)) or (can_reject(inner) and not can_reject(model)):
        return True
    # Some views are the module itself, whose gradients work anywhere: of `robustlit.attacks.BPDA` around a layer.
    return attack_view(inner) is not inner


def _held(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules in an object."""
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: Any = ()
    if isinstance(value, nn.Module):
        yield value
        parts = (*value.children(), *vars(value).values())
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) <= _MOST_HELD:
        parts = value
    elif isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        parts = (value.__self__,)
    elif isinstance(value, FunctionType):
        parts = [cell.cell_contents for cell in value.__closure__ or () if cell != type(cell)()]
    for part in parts:
        yield from _held(part, seen)


def check_logits(logits: object, batch: int) -> Tensor:
    """Return `logits` if they are (batch, K) with K >= 2, else raise a ValueError with what the model returned."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model must return logits (B, K), got {type(logits).__name__}; wrap it in a module that returns "
            "the logits alone"
        )
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] < 2:
        way_out = "; wrap it in a module that returns one row for each image, with one score for each class"
        if logits.shape in ((batch, 1), (batch,)):
            way_out = "; of the logit z of class 1 against class 0 return torch.stack([0 * z, z], 1), with z (B,)"
        raise ValueError(
            f"the model must return logits (B, K) with K >= 2 for a batch of {batch}, got shape "
            f"{tuple(logits.shape)}{way_out}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"the model must return logits, got {logits.dtype}; return its scores, not the class it chose")
    return logits


def as_weights(net: nn.Module, x: Tensor) -> Tensor:
    """Return `x` in the dtype of a net's weights, but not in half precision, which would round the images."""
    weights = next((p for p in net.parameters() if p.is_floating_point()), x)
    return x.to(torch.promote_types(weights.dtype, torch.float32))


def answer_on_a_copy(net: nn.Module, x: Tensor) -> Any:
    """Return what a net gives for a copy of `x` (B, ...); one that changes its input gets copies from here on.

    Images are used again after a net has seen them: an attack starts from them, another objective needs them.
    """
    with torch.inference_mode(False):
        given = x.clone()  # an ordinary tensor, which counts how often it was written to
    before, answer = writes(given), net(given)
    if writes(given) != before or not torch.equal(given, x):
        net.register_forward_pre_hook(_copied)
    return answer


def _copied(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def names_class(logits: Tensor) -> Tensor:
    """Return (B,) bool, whether logits (B, K) name a class: none is NaN, and the largest is finite or the only +inf.

    A deployed model gives no answer elsewhere, so it counts as wrong there. An impossible class may have -inf.
    """
    # NaN counts as the largest; the difference of the two largest is NaN with it, and of two equal infinities.
    largest = logits.topk(2, 1, sorted=False).values
    return ~(largest[:, 0] - largest[:, 1]).isnan()


def predicted(logits: Tensor) -> Tensor:
    """Return (B,) the class that logits (B, K) name, `NO_CLASS` where they name none (see `names_class`)."""
    return torch.where(names_class(logits), logits.argmax(1), NO_CLASS)


def check_labels(y: Tensor, batch: int, num_classes: int | None = None, name: str = "labels") -> None:
    """Raise a ValueError unless `y` is (batch,) of integers in [0, num_classes)."""
    if y.shape != (batch,):
        way_out = ""
        if y.ndim == 2 and len(y) == batch:
            way_out = "; use y.squeeze(1)" if y.shape[1] == 1 else "; of one-hot labels use y.argmax(1)"
        raise ValueError(f"{name} must have shape ({batch},) to match the images, got {tuple(y.shape)}{way_out}")
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"{name} must be integers, the numbers of classes, got {y.dtype}; use y.long()")
    if num_classes is not None and batch:
        low, high = (int(v) for v in y.long().aminmax())  # there is no aminmax of unsigned integers
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} must lie in [0, {num_classes - 1}] for a model with {num_classes} outputs, "
                f"found values in [{low}, {high}]; number the classes from 0, in the order of the model's outputs"
            )


def default_batch_size(shape: Sequence[int]) -> int:
    """Return how many images an evaluation classifies and attacks in one batch, where the user gives no number.

    500 images of up to 32 x 32 pixels. Of larger images, as many as have the same number of pixels in total, but at
    least 32: an attack keeps the activations of the whole batch in memory. Inputs that are no images: 500.

    Args:
        shape: Of an image (C, H, W), or of several (B, C, H, W).
    """
    pixels = shape[-2] * shape[-1] if len(shape) >= 3 else 0
    return max(32, 500 * 32**2 // max(pixels, 32**2))


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
