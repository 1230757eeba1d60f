"""Connections between the processes of a run, over which they learn of a stop, a vote and a death."""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

import torch.distributed

CONNECT_SECONDS = 20.0  # to reach rank 0; a firewall between the nodes must not keep a run from starting
LEAVE_SECONDS = 120.0  # for all to be ready to leave: rank 0 may have a W&B run to close
# A node that loses its power sends nothing: the kernel asks every KEEP_ALIVE seconds, and gives up after three times.
KEEP_ALIVE = 5

Heard = Callable[[str, int], None]


class Peers(threading.Thread):
    """A star of TCP connections: every process to rank 0. One thread in each process reads and writes them.

    The kernel closes the connections of a process however it ends, so a death is seen at once, also while the main
    thread waits in a collective or computes. What a process sends goes to rank 0, which answers every process:

        stop N        a signal reached one process: the first one is passed on
        at N, done N  votes: when all have sent theirs, all get the largest
        now N         leave at once, with exit code N
        failed R      rank R ends by an error
        lost R        rank R is gone without a word
        bye           goodbye: passed on when all have said it

    Args:
        rank, world_size: This process, and how many there are.
        sockets: Connections by rank: those to all others on rank 0, that to rank 0 elsewhere.
        heard: Called in the thread, with the kind and the number.
    """

    def __init__(self, rank: int, world_size: int, sockets: dict[int, socket.socket], heard: Heard) -> None:
        super().__init__(daemon=True, name="robustlit-peers")
        self.rank, self.world_size, self._sockets, self._heard = rank, world_size, dict(sockets), heard
        self._wake, self._inbox = socket.socketpair()
        self._left: set[int] = set()
        self._votes: dict[str, dict[int, int]] = {}
        self._stopped = False
        self._parted = threading.Event()

    def send(self, kind: str, number: int = 0) -> None:
        """Send a message; safe in a signal handler, as only a few bytes are written to a socket of its own."""
        self._wake.send(f"{kind} {number}\n".encode())

    def leave(self) -> None:
        """Say goodbye, so that this process is not taken for dead, and wait until all have said it."""
        self.send("bye")
        self._parted.wait(LEAVE_SECONDS)

    def run(self) -> None:
        """Read until no connection is left."""
        with selectors.DefaultSelector() as selector:
            for rank, connection in ((self.rank, self._inbox), *self._sockets.items()):
                selector.register(connection, selectors.EVENT_READ, (rank, bytearray()))
            while self._sockets:
                for key, _ in selector.select():
                    rank, buffer = key.data
                    data = _received(key.fileobj)
                    if not data:
                        selector.unregister(key.fileobj)
                        self._gone(rank)
                        continue
                    buffer += data
                    while b"\n" in buffer:
                        line, _, rest = buffer.partition(b"\n")
                        buffer[:] = rest
                        kind, number = line.decode().split()
                        self._message(rank, kind, int(number))
        self._parted.set()

    def _message(self, source: int, kind: str, number: int) -> None:
        if self.rank != 0:
            if source == self.rank:
                self._write(0, kind, number)
            elif kind == "bye":
                self._left.add(0)
                self._parted.set()
            else:
                self._heard(kind, number)
        elif kind == "bye":
            self._left.add(source)
            self._part()
        elif kind in ("at", "done"):
            votes = self._votes.setdefault(kind, {})
            votes[source] = number
            if len(votes) == self.world_size:
                del self._votes[kind]
                self._to_all(kind, max(votes.values()))
        elif kind == "stop":
            if not self._stopped:
                self._stopped = True
                self._to_all(kind, number)
        else:
            self._to_all(kind, number, but=source)

    def _part(self) -> None:
        if self._left >= {0, *self._sockets}:
            for rank in [*self._sockets]:
                self._write(rank, "bye", 0)
            self._parted.set()

    def _gone(self, rank: int) -> None:
        self._sockets.pop(rank).close()
        if rank in self._left:
            return
        if self.rank == 0:
            self._part()
            self._to_all("lost", rank)
        else:
            self._heard("lost", 0)

    def _to_all(self, kind: str, number: int, but: int | None = None) -> None:
        for rank in [*self._sockets]:
            if rank != but:
                self._write(rank, kind, number)
        if but != self.rank:
            self._heard(kind, number)

    def _write(self, rank: int, kind: str, number: int) -> None:
        try:
            self._sockets[rank].sendall(f"{kind} {number}\n".encode())
        except (OSError, KeyError):  # it is gone: reading says so
            return


def _received(connection: Any) -> bytes:
    try:
        data: bytes = connection.recv(4096)
        return data
    except OSError:  # reset, or no answer to keep-alive
        return b""


def connect(rank: int, world_size: int, one_machine: bool, heard: Heard) -> Peers | None:
    """Connect the processes of an initialised process group, not started; None where that fails. All must call it.

    Args:
        rank, world_size, heard: See `Peers`.
        one_machine: Whether all processes run on this machine; then rank 0 listens on the loopback interface alone.
    """
    token = secrets.token_hex(16)
    server = None
    if rank == 0:
        server = socket.create_server(("127.0.0.1" if one_machine else "", 0), backlog=world_size)
    place = [(server.getsockname()[1], token) if server else None]
    torch.distributed.broadcast_object_list(place, src=0)
    assert place[0] is not None
    port, token = place[0]
    sockets: dict[int, socket.socket] = {}
    try:
        if server is not None:
            sockets = _accepted(server, world_size, token.encode())
        else:
            host = "127.0.0.1" if one_machine else os.environ.get("MASTER_ADDR", "127.0.0.1")
            sockets[0] = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
            sockets[0].sendall(f"{token} {rank}\n".encode())
    except OSError:
        sockets = {}
    finally:
        if server is not None:
            server.close()
    connected: list[bool] = [False] * world_size
    torch.distributed.all_gather_object(connected, bool(sockets))
    if not all(connected):
        return None
    for connection in sockets.values():
        connection.settimeout(None)
        _keep_alive(connection)
    return Peers(rank, world_size, sockets, heard)


def _accepted(server: socket.socket, world_size: int, token: bytes) -> dict[int, socket.socket]:
    """Accept the processes that know the token; close whoever else connects."""
    server.settimeout(CONNECT_SECONDS)
    sockets: dict[int, socket.socket] = {}
    while len(sockets) < world_size - 1:
        connection, _ = server.accept()
        connection.settimeout(CONNECT_SECONDS)
        with connection.makefile("rb", buffering=0) as reader:
            line = reader.readline(128)
        known, _, rank = line.strip().partition(b" ")
        if secrets.compare_digest(known, token) and rank.isdigit():
            sockets[int(rank)] = connection
        else:
            connection.close()
    return sockets


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", KEEP_ALIVE), ("TCP_KEEPINTVL", KEEP_ALIVE), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
