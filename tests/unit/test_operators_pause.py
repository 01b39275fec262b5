# SPDX-License-Identifier: GPL-2.0-or-later
"""An operator's pause, and its meetings with the breaker, retries, replays and a crash."""

from __future__ import annotations

from fedora_messaging.message import Message

from consumer_framework import DependencyFault, Quarantine, Retry
from consumer_framework.testing import Harness

BREAKER = {"recovery": {"breaker": {"consecutive": 1, "probe": ["30s"]}}}


def message(n=1):
    return Message(topic="org.example.test", body={"n": n})


def test_nothing_is_consumed_until_the_pause_is_over():
    with Harness(lambda message: None) as harness:
        harness._instance.pause("by an operator: a move")
        assert harness.paused == "by an operator: a move"
        first = message()
        harness.deliver(first)
        harness.advance(3600)
        assert harness.acked == []
        harness._instance.resume()
        harness.advance(1)
        assert harness.acked == [first]
        assert harness.paused == ""


def test_no_probe_runs_while_an_operator_has_paused_the_instance():
    faults, runs = [DependencyFault("the database is gone")], []

    def handle(message):
        runs.append(message)
        if faults:
            raise faults.pop()

    with Harness(handle, settings=BREAKER) as harness:
        harness.deliver(message())
        harness.advance(1)
        harness._instance.pause("by an operator")
        harness.advance(300)
        assert len(runs) == 1
        harness._instance.resume()
        assert "the database is gone" in harness.paused
        harness.advance(31)
        assert len(runs) == 2
        assert harness.paused == ""


def test_the_end_of_a_pause_leaves_other_reasons_and_comes_twice_without_harm():
    def handle(message):
        raise DependencyFault("the database is gone")

    with Harness(handle, settings=BREAKER) as harness:
        harness.deliver(message())
        harness.advance(1)
        harness._instance.pause("by an operator")
        harness._instance.pause("by an operator: longer")
        assert harness.paused.endswith("; by an operator: longer")
        harness._instance.resume()
        harness._instance.resume()
        assert harness.paused.startswith("the database is gone")


def test_a_retry_waits_for_the_end_of_the_pause():
    runs = []

    def handle(message):
        runs.append(message)
        if len(runs) == 1:
            raise Retry(after=10)

    with Harness(handle) as harness:
        harness.deliver(message())
        harness.advance(1)
        harness._instance.pause("by an operator")
        harness.advance(60)
        assert len(runs) == 1
        harness._instance.resume()
        harness.advance(1)
        assert len(runs) == 2


def test_a_crash_ends_the_pause():
    with Harness(lambda message: None) as harness:
        harness._instance.pause("by an operator")
        harness._instance.crash()
        first = message()
        harness.deliver(first)
        harness.advance(1)
        assert harness.acked == [first]


def test_a_replay_runs_during_the_pause():
    is_mended: list[bool] = []

    def handle(message):
        if not is_mended:
            raise Quarantine("broken")

    with Harness(handle) as harness:
        first = message()
        harness.deliver(first)
        harness.advance(1)
        assert harness.quarantined == [first]
        harness._instance.pause("by an operator")
        is_mended.append(True)
        harness.replay(first)
        harness.advance(1)
        assert harness.quarantined == []
        assert harness.paused == "by an operator"
