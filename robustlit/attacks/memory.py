"""Where memory does not suffice for a batch, work on its halves instead."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
# How PyTorch, CUDA's libraries, oneDNN and the C++ runtime word it; only the first have a class of their own.
_WORDS = (
    "out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc",
    "ALLOC_FAILED", "could not create a memory",
)  # fmt: skip
_HALVED = (
    "out of memory in {what} on {count} images: from here on in pieces of at most {half} (results differ in the last "
    "bits of float arithmetic at most; of a random model, by its draws)"
)


class OutOfMemoryError(RuntimeError):
    """Memory does not suffice for a single image."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, of a GPU or of the process, does not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


class Pieces:
    """Do work on as many rows at once as memory holds: whole batches until one fails, then halves of them.

    What fitted is remembered for each kind of work, so that only the first batch fails.
    """

    def __init__(self) -> None:
        self._largest: dict[str, int] = {}

    def done(self, work: Callable[[Tensor], Result], rows: Tensor, what: str) -> list[Result]:
        """Return what `work` returns for pieces of `rows` (b,), in order.

        Args:
            work: Called again from the start for each half of the rows that it ran out of memory on.
            rows: At least one.
            what: The kind of work, for the warning.

        Raises:
            OutOfMemoryError: Memory does not suffice for a single row.
        """
        results: list[Result] = []
        left = list(rows.split(self._largest.get(what, len(rows))))
        while left:
            piece = left.pop(0)
            try:
                results.append(work(piece))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200]
            # Out of the handler, whose traceback holds the tensors that filled the memory.
            if len(piece) == 1:
                raise OutOfMemoryError(
                    f"out of memory in {what} on a single image ({reason}); free memory, run on a device that has more "
                    "(trainer.accelerator=cpu, device=), or take a smaller attack or net"
                )
            half = -(-len(piece) // 2)
            if what not in self._largest:
                warnings.warn(_HALVED.format(what=what, count=len(piece), half=half), stacklevel=3)
            self._largest[what] = half
            left = [part for each in (piece, *left) for part in each.split(half)]
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results
