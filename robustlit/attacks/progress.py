"""How far an attack is, told from inside its loops to whoever watches.

with telling(lambda share: print(f"{share:.0%}")):
    attack.run(model, x, y)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


@dataclass
class _Watch:
    """Who watches, and the part of the whole work, in [0, 1], that the innermost loop stands for."""

    tell: Callable[[float], None]
    low: float = 0.0
    high: float = 1.0
    told: float = 0.0

    def reached(self) -> None:
        self.told = max(self.told, self.low)  # an attempt that starts again takes nothing back
        self.tell(self.told)


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def telling(tell: Callable[[float], None]) -> Iterator[None]:
    """Have `tell` called with the share in [0, 1] of their work that the attacks run inside have done, at every step.

    An attack that breaks every example ends early, so the share may jump to the next attack's.
    """
    token = _watch.set(_Watch(tell))
    try:
        yield
    finally:
        _watch.reset(token)


def told(items: Iterable[T], weights: Sequence[float] = ()) -> Iterator[T]:
    """Yield the items of an attack's loop, and tell whoever watches how far the loop is. Loops may be nested.

    Args:
        items: What the loop is over.
        weights: How long each item takes, in any unit; by default all take the same.
    """
    watch = _watch.get()
    if watch is None:
        yield from items
        return
    items = list(items)
    whole = list(accumulate(weights or [1.0] * len(items), initial=0.0))
    low, width = watch.low, (watch.high - watch.low) / (whole[-1] or 1.0)
    try:
        for number, item in enumerate(items):
            watch.low, watch.high = low + width * whole[number], low + width * whole[number + 1]
            watch.reached()
            yield item
    finally:
        watch.low, watch.high = low, low + width * whole[-1]
