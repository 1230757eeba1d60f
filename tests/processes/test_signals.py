"""Signals outside a training and a sweep: leave by SystemExit, wait for the end of a block, restore."""

from __future__ import annotations

import signal
import threading

import pytest

from robustlit.processes import Guard, deferred, leave_on_signals
from robustlit.processes.signals import SIGNALS

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_with_its_code_and_the_handlers_come_back(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(SystemExit) as stop, leave_on_signals():
        signal.raise_signal(number)
    assert stop.value.code == 128 + number
    assert capfd.readouterr().err == f"stopped by {number.name}\n"
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_signal_waits_for_the_end_of_a_block() -> None:
    done = []

    def work() -> None:
        with leave_on_signals(), deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append(1)

    with pytest.raises(SystemExit) as stop:
        work()
    assert stop.value.code == 143
    assert done


def test_nohup_keeps_a_run_alive() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leave_on_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_signal_than_the_first_is_part_of_the_same_end_and_the_same_one_stops_at_once() -> None:
    guard = Guard()
    guard.notice = "saved"
    guard.start(0, 1)
    try:
        assert not guard.at_boundary()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)  # systemd sends both
        assert guard.at_boundary()
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit), guard.interruptible():
            raise AssertionError("work that a stop had already ended")
    finally:
        guard.restore()


def test_in_another_thread_nothing_is_installed() -> None:
    before, guard = signal.getsignal(signal.SIGTERM), Guard()
    thread = threading.Thread(target=lambda: guard.start(0, 1))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not guard.at_boundary()
    guard.end()
