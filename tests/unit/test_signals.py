# SPDX-License-Identifier: GPL-2.0-or-later
"""What signals order."""

import os
import signal

import pytest

from consumer_framework.host.signals import Signals


class Reactor:
    """Calls at once what threads, and signals, want it to call."""

    def callFromThread(self, function, *arguments):  # noqa: N802 -- Twisted's name
        function(*arguments)


@pytest.fixture
def caught():
    """What was ordered while signals are caught."""
    orders: list[object] = []
    made = Signals(Reactor(), orders.append, lambda: orders.append("reload"))
    former = signal.getsignal(signal.SIGHUP)
    made.catch()
    yield orders
    made.release()
    assert signal.getsignal(signal.SIGHUP) == former


def test_a_hangup_is_an_order_to_reload_and_never_counts_as_one_to_stop(caught):
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert caught == ["reload", "reload", "reload", signal.SIGTERM]


def test_a_hangup_of_the_terminal_is_an_order_to_stop():
    controller, terminal = os.openpty()
    orders: list[object] = []
    made = Signals(Reactor(), orders.append, lambda: orders.append("reload"))
    before = os.dup(0)
    os.dup2(terminal, 0)
    try:
        made.catch()
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        os.dup2(before, 0)
        made.release()
        for descriptor in (before, controller, terminal):
            os.close(descriptor)
    assert orders == [signal.SIGHUP]
