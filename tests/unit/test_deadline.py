# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits that end, and that the service manager does not end before."""

import pytest
from twisted.internet.task import Clock

from consumer_framework.runtime.deadline import LEASE, RENEWAL, Deadline
from consumer_framework.testing import FakeNotifier


class Wait:
    """Return a deadline on a clock of its own."""

    def __init__(self):
        self.clock = Clock()
        self.notifier = FakeNotifier()
        self.seen = []
        self.passed = 0
        self.deadline = Deadline(
            self.clock.seconds, self.notifier, self._tick, self._pass, self.clock.callLater
        )

    def _tick(self):
        self.seen.append(self.deadline.left)

    def _pass(self):
        self.passed += 1

    def go_on(self, seconds):
        for _ in range(seconds):
            self.clock.advance(1)


@pytest.fixture
def wait():
    made = Wait()
    yield made
    assert not made.clock.getDelayedCalls(), "a timer is left"


def test_there_is_no_end_before_and_after_a_wait(wait):
    assert wait.deadline.left is None
    wait.deadline.start(lambda: 10)
    wait.deadline.stop()
    assert wait.deadline.left is None
    wait.deadline.stop()
    assert wait.passed == 0


def test_it_counts_down_once_a_second_and_then_it_is_over_once(wait):
    wait.deadline.start(lambda: 5)
    wait.go_on(20)
    assert wait.seen == [5, 4, 3, 2, 1]
    assert wait.passed == 1
    assert wait.deadline.left is None


def test_an_end_may_move(wait):
    end = 3
    wait.deadline.start(lambda: end)
    wait.go_on(2)
    end = 10
    wait.go_on(7)
    assert wait.passed == 0
    end = 9
    wait.go_on(1)
    assert wait.passed == 1


def test_an_end_in_the_past_is_over_at_once(wait):
    wait.clock.advance(100)
    wait.deadline.start(lambda: 50)
    assert wait.passed == 1
    assert wait.seen == wait.notifier.extensions == []


def test_more_time_is_asked_for_at_once_and_again_long_before_it_is_used_up(wait):
    wait.deadline.start(lambda: 1000)
    assert wait.notifier.extensions == [LEASE]
    wait.go_on(60)
    assert wait.notifier.extensions == [LEASE] * (1 + 60 // int(RENEWAL))
    assert 2 * RENEWAL < LEASE
    wait.deadline.stop()
    wait.go_on(60)
    assert len(wait.notifier.extensions) == 1 + 60 // int(RENEWAL)


def test_a_new_wait_takes_the_place_of_the_former_one_and_asks_at_once(wait):
    wait.deadline.start(lambda: 10)
    wait.go_on(1)
    wait.deadline.start(lambda: 100)
    assert wait.notifier.extensions == [LEASE] * 2
    wait.go_on(20)
    assert wait.passed == 0
    wait.deadline.stop()
