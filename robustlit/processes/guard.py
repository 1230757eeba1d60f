"""One run's stop: where a signal lets each of its processes leave, and what the death of one does to the others."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch.distributed

from robustlit.processes.children import Children
from robustlit.processes.peers import Peers, connect
from robustlit.processes.signals import exit_code, install, restore
from robustlit.processes.slurm import requeue_job

GRACE_SECONDS = 10.0  # for the main thread to leave by itself, after a death or an order to leave at once
TWICE_SECONDS = 1.0  # torchrun passes a Ctrl-C on to processes that the terminal has sent it to as well


class Guard:
    """Turn the first signal into a stop at the next boundary, the same for all processes; a second one stops at once.

    A boundary is the end of a training step, of the training, or of a sweep's batch. Several processes need no
    collective for it: on a stop each says which boundary it can reach first, and all stop at the largest of these.

    Args:
        requeue: Under SLURM, put the job back into the queue on SIGUSR1.

    Attributes:
        number: The signal that stops the run; None while it goes on.
        lost: The rank that died, if one did.
        notice: What to say on the first signal.
    """

    def __init__(self, *, requeue: bool = False) -> None:
        self.requeue = requeue
        self.number: int | None = None
        self.lost: int | None = None
        self.notice = ""
        self._peers: Peers | None = None
        self._before: dict[int, Any] = {}
        self._own: tuple[int, float] | None = None  # the first signal of this process, and when it came
        self._woken = False  # the next signal is the thread's, which wakes the main thread
        self._leave: int | None = None  # exit code, once the main thread must leave at once
        self._process = os.getpid()
        self._inside = False  # in work that may be abandoned anywhere
        self._failed = self._leaving = False
        self._lock = threading.Lock()
        self._passed = 0
        self._children: Children | None = None
        self._results = {"at": -1, "done": -1}
        self._news = {kind: threading.Event() for kind in self._results}

    def start(self, rank: int, world_size: int, one_machine: bool = True) -> None:
        """Install the signal handlers and connect the processes; in a thread that is not main, only the latter."""
        if self._peers is None:
            self.number, self._own = None, None
        atexit.register(self.close)
        if not self._before:
            self._before = install(self._handle)
        if world_size > 1 and self._peers is None:
            self._peers = connect(rank, world_size, one_machine, self._heard)
            if self._children is not None:
                self._children.connected = True
            if self._peers is not None:
                self._peers.start()
            elif rank == 0:
                _write("the processes cannot reach rank 0 over TCP: a signal or a death reaches one of them alone\n")

    def watch_children(self, launcher: Any) -> None:
        """Watch the processes that Lightning will start, until all are connected."""
        if hasattr(launcher, "procs"):
            self._children = Children(launcher)
            self._children.start()

    def restore(self) -> None:
        """Restore the signal handlers."""
        restore(self._handle, self._before)
        self._before = {}

    def end(self) -> None:
        """Restore the signal handlers; leave if a signal came that no boundary has answered."""
        self.restore()
        if self.number is not None and self._leave is None:
            if self._peers is not None:
                self._peers.send("now", exit_code(self.number))
            self.leave()

    def leave(self) -> None:
        """Leave by SystemExit with the signal's exit code, as every process does here."""
        self._leaving = True
        raise SystemExit(1 if self.number is None else exit_code(self.number))

    def at_boundary(self) -> bool:
        """Return whether to save and leave here; every process must call it at each step's end, and at the last's."""
        if self._peers is None:
            return self.number is not None
        with self._lock:
            if self.number is None:
                self._passed += 1
                return False
        target = self._result("at")
        self._passed += 1
        return self._passed == target

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that may be abandoned anywhere: a stop raises SystemExit in it, or before it starts."""
        self._inside = True
        try:
            if self.number is not None:
                raise SystemExit(exit_code(self.number))
            yield
        finally:
            self._inside = False

    def all_done(self, cut: bool) -> bool:
        """Wait for every process to be done with its batches; return whether any was cut short.

        Not a collective, in which no signal is heard until the last process has come.
        """
        if self._peers is None:
            return cut
        self._news["done"].clear()
        self._peers.send("done", int(cut))
        return bool(self._result("done"))

    def failed(self) -> None:
        """Note that this process ends by an error: the others must not wait for it."""
        self._failed = True
        if self._children is not None:
            self._children.connected = True  # a child that fails in the same way is no news

    def death_follows(self, seconds: float = 3.0) -> bool:
        """Return whether an error, such as of a collective, came from the death of a process; wait for that news."""
        until = time.monotonic() + (seconds if self._peers is not None else 0)
        while self.lost is None and time.monotonic() < until:
            time.sleep(0.05)
        return self.lost is not None

    def close(self, code: int = 0) -> None:
        """Say goodbye to the other processes, end the process group, and requeue a job that SLURM will end soon.

        All wait for each other before: srun and torchrun end the others when a process leaves with a signal's code.

        Args:
            code: The exit code of this process; one of a signal is passed on.
        """
        atexit.unregister(self.close)
        if self._children is not None and (self._peers is None or self._failed):
            self._children.stop()
        main = self._peers is None or self._peers.rank == 0
        if self._peers is not None:
            self._part(self._peers, code)
            self._peers = None
        if main and self.requeue and self.number == signal.SIGUSR1 and not self._failed:
            requeue_job()

    def _part(self, peers: Peers, code: int) -> None:
        if self._failed or self.lost is not None:
            self._exit_later(1)
        if self._failed and self.lost is None:
            peers.send("failed", peers.rank)
        elif code > exit_code(0) and not self._leaving:
            peers.send("now", code)
        peers.leave()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if self._children is not None and self._children.processes:  # of Lightning's launcher: this one ends last
            peers.join(GRACE_SECONDS)

    def _result(self, kind: str) -> int:
        while not self._news[kind].wait(1.0):  # with a limit, so that a signal is heard everywhere
            if self.lost is not None:
                raise SystemExit(1)
        return self._results[kind]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal, in the main thread: it takes no lock, which the main thread itself may hold."""
        if os.getpid() != self._process:  # a worker of a DataLoader, which the step still needs
            return
        woken, self._woken = self._woken, False
        if self._leave is not None:
            code, self._leave = self._leave, None
            raise SystemExit(code)
        if woken:
            if self._inside and self.number is not None:
                raise SystemExit(exit_code(self.number))
            return
        if self._own is None:
            self._own = number, time.monotonic()
            if self._peers is not None:
                self._peers.send("stop", number)  # and hear of it as the others do
                return
            self._stop(number)
            if self._inside:
                raise SystemExit(exit_code(number))
            return
        first, since = self._own
        twice = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - since < TWICE_SECONDS
        # Another one than the first is part of the same end: systemd sends SIGTERM and SIGHUP, SLURM USR1 and SIGTERM.
        if not twice and number in (first, signal.SIGINT):
            if self._peers is not None:
                self._peers.send("now", exit_code(number))
            raise SystemExit(exit_code(number))

    def _stop(self, number: int) -> None:
        self.number = number
        if self._peers is None or self._peers.rank == 0:
            again = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            _write(f"\ninterrupted by {again}: {self.notice}; {again} again stops at once\n")

    def _heard(self, kind: str, number: int) -> None:
        """Answer a message of the other processes, in the thread that reads them."""
        if (peers := self._peers) is None:  # it is leaving
            return
        if kind in self._results:
            self._results[kind] = number
            self._news[kind].set()
        elif kind == "stop":
            with self._lock:
                self._stop(number)
                peers.send("at", self._passed + 1)
            if self._inside:
                self._wake()
        elif kind == "now":
            self._order_out(number)
        elif self.lost is None:
            self.lost = number
            first = peers.rank == (1 if number == 0 else 0)
            if first and not (kind == "failed" and self._failed):
                how = "died" if kind == "lost" else "ended by an error"
                _write(f"error: rank {number} of {peers.world_size} processes {how}: the others end\n")
            self._order_out(1)

    def _order_out(self, code: int) -> None:
        """Let the main thread leave; where it waits in a collective or a kernel, end the process after a while."""
        if self._leaving:
            return
        self._exit_later(code)
        self._leave = code
        self._wake()

    def _exit_later(self, code: int) -> None:
        timer = threading.Timer(GRACE_SECONDS, os._exit, (code,))
        timer.daemon = True
        with suppress(RuntimeError):  # while Python ends, from 3.12 on, no thread can start
            timer.start()

    def _wake(self) -> None:
        if self._before:  # else there is no handler
            self._woken = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _write(text: str) -> None:
    os.write(2, text.encode())  # not print(): a handler may run in the middle of another write to the same buffer
