"""Call a net that is under attack: on a copy where it works in place, in the dtype of its weights, watched once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from robustlit.attacks.losses import HALF
from robustlit.attacks.memory import is_out_of_memory
from robustlit.classifier import check_logits, writes

_SOMETIMES_IN_PLACE = (
    "{name} changes its input in place, but did not on its first batch: work on a copy in its forward (x = x.clone()), "
    "or the images under attack are corrupted"
)
_HALF_WEIGHTS = (
    "images are {images}, and the weights of {name} {weights}, which rounds images and loses gradients: attack "
    "model.float(), which has the same weights, or, to judge the rounding too, a module with "
    "forward(x) = model(x.to({weights})).float()"
)
_DOUBLE_IMAGES = "images are {images}, and the weights of {name} {weights}; use x.float()"


class Call:
    """A net as an attack calls it.

    Its first batch is a copy, and whether that changed decides if later batches are copied (writing to x.data leaves
    the version, so values are compared too): a net that works in place would change the images under attack, or fail on
    a leaf that requires gradients.

    Images go in as they are; where the net refuses them and its weights are float64, they are widened, which is exact.
    Logits in half precision come back in the dtype of the images, which is exact too; wider ones stay as they are.

    Args:
        net: From images (b, ...) to logits (b, K).
        always_copy: Copy every batch, for a net that may work in place now and then, and without comparing.
        keep_dtype: Leave logits in half precision as they are.
        first: Surrounds the first call.
    """

    def __init__(
        self, net: nn.Module, *, always_copy: bool, keep_dtype: bool,
        first: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self.net, self.keep_dtype = net, keep_dtype
        self._in_place: bool | None = True if always_copy else None  # None until the first batch
        self._dtype: torch.dtype | None = None  # to convert images to
        self._first: Callable[[], AbstractContextManager[None]] | None = first

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits (b, K) of images (b, ...)."""
        given = x if self._in_place is False else x.clone()
        before = writes(given)
        first, self._first = self._first, None
        if first is None:
            answer = self._answer(given)
        else:
            with first():
                answer = self._answer(given, first=True)
        logits = check_logits(answer, len(x))
        if self._in_place is None:
            self._in_place = writes(given) != before or not torch.equal(given.detach(), x.detach())
        elif given is x and writes(given) != before:
            raise ValueError(_SOMETIMES_IN_PLACE.format(name=type(self.net).__name__))
        return logits.to(x.dtype) if logits.dtype in HALF and not self.keep_dtype else logits

    def _answer(self, x: Tensor, *, first: bool = False) -> object:
        if self._dtype is not None:
            return self.net(x.to(self._dtype))
        try:
            return self.net(x)
        except RuntimeError as error:
            answer = None
            if first and not is_out_of_memory(error):
                answer = answer_in_float64(self.net, x)
            if answer is None:
                raise
        self._dtype = torch.float64
        return answer


class DtypeError(ValueError):
    """A net takes images only in a dtype that rounds them or loses gradients."""


def answer_in_float64(net: nn.Module, x: Tensor) -> object | None:
    """Return what a net of float64 weights answers for images x (B, C, H, W); None where the dtype is not at fault.

    Call it after the net has refused x.

    Raises:
        DtypeError: The net takes them in the narrower dtype of its weights.
    """
    weights = {p.dtype for p in net.parameters() if p.is_floating_point()}
    if not weights or x.dtype in weights:
        return None
    dtype = weights.pop()
    try:
        answer = net(x.to(dtype))
    except RuntimeError:
        return None
    if dtype != torch.float64:
        message = _HALF_WEIGHTS if dtype in HALF else _DOUBLE_IMAGES
        raise DtypeError(message.format(images=x.dtype, name=type(net).__name__, weights=dtype))
    return answer
