"""Report from inside an attack's loops how much of its work is done.

with report_to(lambda share: print(f"{share:.0%}")):
    attack.run(model, x, y)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class _Progress:
    """Where progress is reported, and the part of the whole work, in [0, 1], that the innermost loop stands for."""

    report: Callable[[float], None]
    low: float = 0.0
    high: float = 1.0
    done: float = 0.0  # as reported last

    def advance(self) -> None:
        self.done = max(self.done, self.low)  # progress never falls, also where an attack starts again
        self.report(self.done)


_progress: ContextVar[_Progress | None] = ContextVar("progress", default=None)


@contextmanager
def report_to(report: Callable[[float], None]) -> Iterator[None]:
    """Call `report` at every step of the attacks run inside, with the share in [0, 1] of their work that is done.

    An attack that breaks every example ends early, so the last share may be well below 1.
    """
    token = _progress.set(_Progress(report))
    try:
        yield
    finally:
        _progress.reset(token)


def track(items: Iterable[T], weights: Sequence[float] = ()) -> Iterator[T]:
    """Yield the items of an attack's loop and report how far the loop is; without `report_to`, only yield them.

    Loops may be nested: an inner loop stands for the current item of the outer one.

    Args:
        items: What the loop is over.
        weights: How long each item takes, in any unit; by default all take the same. A list may change on the way: the
            items that are left share what is left of the work.
    """
    progress = _progress.get()
    if progress is None:
        yield from items
        return
    items = list(items)
    start, end = progress.low, progress.high
    low = start
    try:
        for number, item in enumerate(items):
            part = weights[number] / (sum(weights[number:]) or 1.0) if weights else 1 / (len(items) - number)
            progress.low, progress.high = low, low + (end - low) * part
            progress.advance()
            yield item
            low += (end - low) * part
    finally:
        progress.low, progress.high = start, end
