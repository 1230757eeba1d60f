"""The signals that end a run, and what a run does with them outside its training and its sweep."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C; `kill`, schedulers and systemd; a terminal that closes; the notice in advance of SLURM (--signal=USR1@120).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

Handler = Callable[[int, FrameType | None], Any]


def exit_code(number: int) -> int:
    """Return the exit code of a run that a signal ended, as a shell gives it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def install(handler: Handler) -> dict[int, Any]:
    """Install a handler of the four signals and return the handlers before; nothing outside the main thread.

    A SIGHUP that is ignored stays so: that is how `nohup` keeps a run alive.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def restore(handler: Handler, before: dict[int, Any]) -> None:
    """Put the handlers before back, where the handler is still the installed one."""
    for number, previous in before.items():
        if signal.getsignal(number) == handler:
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)


def without_lightnings_handlers(trainer: Any) -> None:
    """Keep a Trainer from installing handlers, which wait in a collective for processes that may get no signal."""
    trainer._signal_connector.register_signal_handlers = lambda: None


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """Leave by SystemExit, with one line, on a signal: nothing was computed that is not on disk."""

    def leave(number: int, frame: FrameType | None) -> None:
        ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
        if set(ranks) == {"0"}:  # not print(): a handler may run in the middle of another write to the same buffer
            os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
        raise SystemExit(exit_code(number))

    before = install(leave)
    try:
        yield
    finally:
        restore(leave, before)


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait until the block is done, such as the writing of results."""
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = install(keep)
    try:
        yield
    finally:
        restore(keep, before)
    if came:
        signal.raise_signal(came[0])
