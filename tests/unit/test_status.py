# SPDX-License-Identifier: GPL-2.0-or-later
"""The line that `systemctl status` shows."""

import pytest

from consumer_framework.core.lifecycle import State
from consumer_framework.core.stats import Snapshot
from consumer_framework.core.status import counts_text, status_line

BROKER = "rabbitmq.example.org:5671"


def line(state, counts=Snapshot(), trouble="", queues=("one",), running=0):  # noqa: B008 -- frozen
    return status_line(state, BROKER, queues, counts, trouble, running=running)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State.BUILDING, "Starting: setting up the handler"),
        (State.CONNECTING, f"Connecting to the broker at {BROKER}"),
        (State.SUBSCRIBING, f"Connected to the broker at {BROKER}, subscribing"),
        (State.CONSUMING, "Consuming from one; 3 handled, 1 failed"),
        (State.PAUSED, "Paused"),
        (State.FAILING, "Failing: waiting for 2 running; 3 handled, 1 failed"),
        (State.DRAINING, "Stopping: waiting for 2 running; 3 handled, 1 failed"),
        (State.STOPPED, "Stopped; 3 handled, 1 failed"),
    ],
)
def test_each_state_has_its_line(state, text):
    assert line(state, Snapshot(acked=3, failed=1), running=2) == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State.CONNECTING, f"Waiting for the broker at {BROKER}: refused"),
        (State.SUBSCRIBING, "refused"),
        (State.PAUSED, "Paused: refused; 0 handled"),
        (State.STOPPED, "refused"),
    ],
)
def test_trouble_is_what_the_line_says_where_nothing_is_consumed(state, text):
    assert line(state, trouble="refused") == text


@pytest.mark.parametrize("state", [State.BUILDING, State.CONSUMING, State.FAILING, State.DRAINING])
def test_trouble_of_the_past_is_not_shown(state):
    assert "refused" not in line(state, trouble="refused")


def test_every_state_has_a_line_of_its_own():
    assert len({line(state) for state in State}) == len(State)


def test_many_queues_are_counted_and_not_listed():
    assert line(State.CONSUMING, queues=["a", "b", "c"]).startswith("Consuming from a, b, c;")
    assert line(State.CONSUMING, queues=list("abcde")).startswith(
        "Consuming from a, b, c and 2 more;"
    )


def test_what_never_happened_is_left_out_except_successes():
    assert counts_text(Snapshot()) == "0 handled"
    assert counts_text(Snapshot(acked=5, requeued=4, rejected=3, undecodable=2, failed=1)) == (
        "5 handled, 4 requeued, 3 rejected, 2 undecodable, 1 failed"
    )
    assert counts_text(Snapshot(acked=4, held=3, deferred=2, quarantined=1)) == (
        "4 handled, 3 held, 2 deferred, 1 quarantined"
    )
