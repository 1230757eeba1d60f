"""Processes that Lightning starts on one machine, while they have no connection yet: no start outlives a death."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

PARENT_VARIABLE = "ROBUSTLIT_PARENT"  # tells the processes that Lightning starts which one started them
POLL_SECONDS = 0.5
PARTED_SECONDS = 12.0  # processes that are connected have left by then, each with its exit code
ERROR_SECONDS = 5.0


def watch_parent() -> None:
    """In a process that Lightning started: end it when the process that started it has ended."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        return

    def watch() -> None:
        if os.getppid() == int(parent):
            while os.getppid() == int(parent):
                time.sleep(POLL_SECONDS)
            time.sleep(PARTED_SECONDS)
        os.write(2, b"error: rank 0 ended before the run had started: the others end\n")
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="robustlit-parent").start()


class Children(threading.Thread):
    """End the run, with one line, when a process that Lightning started ends with an error before it is connected.

    Lightning's own observer looks every five seconds and then kills the main process too, without a word, also where
    the others have just left by a signal: this one takes its place.

    Args:
        launcher: Of the Trainer's strategy; one that starts processes lists them in `procs`.
    """

    def __init__(self, launcher: Any) -> None:
        super().__init__(daemon=True, name="robustlit-children")
        self.launcher, self.connected = launcher, False
        self.processes: list[Any] = []

    def run(self) -> None:
        """Look every half second."""
        while not self.connected:
            found = getattr(self.launcher, "procs", [])
            while found:  # Lightning's observer has nothing left to watch
                self.processes.append(found.pop(0))
            for rank, process in enumerate(self.processes, 1):
                if process.poll():
                    if process.returncode > 0:  # an error: it may be everyone's, and this process about to say so
                        time.sleep(ERROR_SECONDS)
                    if not self.connected:
                        self._end(rank)
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ask the processes that are still there to end."""
        self.connected = True  # nothing is left to watch
        for process in self.processes:
            process.terminate()

    def _end(self, rank: int) -> None:
        os.write(2, f"error: rank {rank} ended before the run had started: the others end\n".encode())
        for process in self.processes:
            process.kill()
        os._exit(1)
