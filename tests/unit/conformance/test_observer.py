# SPDX-License-Identifier: GPL-2.0-or-later
"""Every observer takes every event, and changes none."""

import pytest

from consumer_framework.core import disposition as to
from consumer_framework.core.attempt import NO_HISTORY
from consumer_framework.core.delivery import Failed, Succeeded
from consumer_framework.core.gate import Reason
from consumer_framework.core.lifecycle import State
from consumer_framework.core.ports import Observers, Paused, Ran, Settled, StateChanged
from consumer_framework.core.recovery import Decision
from consumer_framework.core.stats import Counters
from consumer_framework.runtime.observe.log import DeliveryLog
from consumer_framework.testing import FakeClock, FakeObserver
from consumer_framework.testing.fake_queue import DispositionObserver, FakeQueue
from consumer_framework.testing.fake_store import FakeStore
from consumer_framework.testing.fakes import FakeProperties

QUEUE = FakeQueue()
QUEUE.publish("given", "a.topic", FakeProperties("1"), b"{}")
DELIVERY = QUEUE.take(FakeClock())
OBSERVERS = {
    "Counters": Counters,
    "DeliveryLog": lambda: DeliveryLog(FakeClock()),
    "DispositionObserver": lambda: DispositionObserver(QUEUE, FakeStore()),
    "FakeObserver": FakeObserver,
    "Observers": lambda: Observers(Counters(), FakeObserver()),
    "no Observers": Observers,
}


@pytest.fixture(params=OBSERVERS)
def observer(request):
    return OBSERVERS[request.param]()


def settled(disposition, *, is_void=False):
    outcome = Succeeded() if isinstance(disposition, to.Ack) else Failed(ValueError("no"))
    return Settled(DELIVERY, outcome, Decision(disposition, NO_HISTORY), is_void)


EVENTS = [
    Ran(DELIVERY, Succeeded()),
    settled(to.Ack()),
    settled(to.Ack(), is_void=True),
    settled(to.Requeue("no")),
    settled(to.GiveBack()),
    settled(to.Reject("no")),
    settled(to.Hold(5.0)),
    settled(to.Defer(5.0)),
    settled(to.Quarantine("no")),
    settled(to.Halt(13, requeue=True)),
    StateChanged(State.CONNECTING, State.SUBSCRIBING),
    Paused(Reason.STORE, "no space left on device"),
    Paused(Reason.STORE, ""),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda one: type(one).__name__)
def test_an_observer_takes_every_event(observer, event):
    observer.notify(event)


def test_observers_are_told_in_their_order():
    told = []

    class Recording(FakeObserver):
        def notify(self, event):
            told.append((self, event))

    first, second = Recording(), Recording()
    Observers(first, second).notify(EVENTS[0])
    assert told == [(first, EVENTS[0]), (second, EVENTS[0])]
