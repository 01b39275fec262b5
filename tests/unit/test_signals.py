# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that order a stop or a reload."""

import os
import signal

import pytest

from consumer_framework.runtime.signals import Signals


class Reactor:
    """Calls at once the functions that threads, and signals, hand it."""

    def callFromThread(self, function, *arguments):  # noqa: N802 -- Twisted's name
        function(*arguments)


@pytest.fixture(autouse=True)
def _restored():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    former = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


def catching():
    """Signals that are caught, and the orders of the meantime."""
    orders: list[object] = []
    made = Signals(Reactor(), orders.append, lambda: orders.append("reload"))
    made.catch()
    return made, orders


def test_a_hangup_is_an_order_to_reload_and_never_counts_as_one_to_stop():
    _, caught = catching()
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
        for descriptor in (before, controller, terminal):
            os.close(descriptor)
    assert orders == [signal.SIGHUP]


def test_a_signal_handler_that_was_set_meanwhile_is_replaced():
    made, orders = catching()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    made.catch()
    os.kill(os.getpid(), signal.SIGTERM)
    assert orders == [signal.SIGTERM]


def test_signals_at_the_last_moment_change_nothing_but_when_the_process_ends():
    made, orders = catching()
    made.finish(lambda: orders.append("left"))
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert orders == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert orders == ["left"]
