"""Peers: what each process learns of the others over its connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from robustlit.processes.peers import Peers

pytestmark = pytest.mark.faults
Said = list[tuple[str, int]]


@pytest.fixture
def three() -> Iterator[tuple[list[Peers], list[Said], list[socket.socket]]]:
    """Three ranks in threads of this process, what each has heard, and the far ends of rank 0's connections."""
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    heard: list[Said] = [[], [], []]

    def of(rank: int) -> Callable[[str, int], None]:
        return lambda kind, number: heard[rank].append((kind, number))

    hub = Peers(0, 3, {rank: pair[0] for rank, pair in pairs.items()}, of(0))
    others = [Peers(rank, 3, {0: pairs[rank][1]}, of(rank)) for rank in (1, 2)]
    for peers in (hub, *others):
        peers.start()
    yield [hub, *others], heard, [pairs[rank][1] for rank in (1, 2)]
    for end in (pairs[1][1], pairs[2][1]):
        end.close()


def eventually(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_stop_reaches_all_once_and_the_largest_vote_wins(three: tuple[list[Peers], list[Said], list]) -> None:
    peers, heard, _ = three
    peers[2].send("stop", 15)
    eventually(lambda: all(heard))
    peers[0].send("stop", 2)  # a second one
    for rank, vote in ((1, 7), (2, 8)):
        peers[rank].send("at", vote)
    time.sleep(0.1)
    assert all(said == [("stop", 15)] for said in heard)  # rank 0 has not voted
    peers[0].send("at", 7)
    eventually(lambda: all(said == [("stop", 15), ("at", 8)] for said in heard))


def test_a_connection_that_ends_without_goodbye_is_a_death(three: tuple[list[Peers], list[Said], list]) -> None:
    _, heard, ends = three
    ends[0].shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that was killed
    eventually(lambda: heard[0] == [("lost", 1)] and heard[2] == [("lost", 1)])


def test_processes_that_say_goodbye_leave_together(three: tuple[list[Peers], list[Said], list]) -> None:
    peers, heard, ends = three
    for each in peers[1:]:
        each.send("bye")
    time.sleep(0.1)
    assert all(each.is_alive() for each in peers)
    peers[0].leave()
    peers[1].leave()
    for end in ends:
        end.shutdown(socket.SHUT_RDWR)
    for each in peers:
        each.join(20)
    assert heard == [[], [], []]
