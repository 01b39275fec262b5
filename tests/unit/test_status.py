# SPDX-License-Identifier: GPL-2.0-or-later
"""The line that `systemctl status` shows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.health import Assessment, InstanceCondition
from consumer_framework.core.lag import Lag
from consumer_framework.core.lifecycle import State
from consumer_framework.core.loss import Loss
from consumer_framework.core.stats import Snapshot
from consumer_framework.core.text import rate_text
from consumer_framework.runtime.health import Health
from consumer_framework.runtime.observe.status import (
    StatusFacts,
    counts_text,
    health_remarks,
    status_line,
)

BROKER = "rabbitmq.example.org:5671"


def line(state, **facts):
    return status_line(state, StatusFacts(**{"broker": BROKER, "queues": 1, **facts}))


def test_one_line_shows_the_work_and_the_waiting_messages_of_a_consuming_instance():
    text = line(
        State.CONSUMING,
        queues=2,
        rate=118.2,
        counts=Snapshot(acked=41200),
        held=3,
        deferred=1,
        quarantined=2,
        lag=40,
        up=3 * 86400 + 5000,
    )
    assert text == (
        "consuming 2 queues, 118/s, 41200 handled, 3 held, 1 deferred, 2 quarantined, lag 40, "
        "up 3 d"
    )


def test_retries_that_take_the_slots_are_named():
    text = line(State.CONSUMING, deferred=40000, due=38000, up=7)
    assert "40000 deferred, retries share the slots (38000 due)" in text


def test_counts_of_zero_are_left_out():
    text = line(State.CONSUMING, counts=Snapshot(acked=3, held=9, quarantined=9), up=59.9)
    assert text == "consuming 1 queue, 0/s, 3 handled, up 59 s"


def test_a_lag_of_nothing_is_news_and_an_unknown_one_is_not_there():
    assert "lag 0" in line(State.CONSUMING, lag=0)
    assert "lag" not in line(State.CONSUMING)


@pytest.mark.parametrize(
    ("lag", "text"),
    [
        (Lag(2.5, "message"), "lag 40 (oldest 2 s)"),
        (Lag(3000.0, "estimate"), "lag 40 (oldest about 50 min)"),
        (Lag(0.4, "message"), "lag 40,"),
        (Lag(), "lag 40,"),
    ],
)
def test_the_age_of_the_oldest_message_is_shown_from_a_second_on(lag, text):
    assert text in line(State.CONSUMING, lag=40, lag_time=lag)


def health(condition=InstanceCondition.CONSUMING, reason="", loss=None):
    return Health(Assessment(condition, reason), Lag(), loss)


@pytest.mark.parametrize("condition", InstanceCondition)
def test_a_condition_that_the_state_does_not_show_is_a_part_of_the_line(condition):
    found = health_remarks(health(condition, "a reason"), 0.0)
    shown = {"stuck", "unhealthy", "retrying", "lagging", "slow"}
    assert found == ([f"{condition.value}: a reason"] if condition.value in shown else [])


@pytest.mark.parametrize(
    ("seconds", "remarks"),
    [
        (3 * 3600.0, ["loss in 3 h: the disk is full"]),
        (0.0, ["loss now: the disk is full"]),
        (86401.0, []),
    ],
)
def test_a_loss_is_a_part_of_the_line_when_it_is_near(seconds, remarks):
    loss = Loss("the disk is full", seconds, "make room")
    assert health_remarks(health(loss=loss), 86400.0) == remarks


def test_no_loss_is_shown_where_none_is_wanted():
    assert health_remarks(health(loss=Loss("the disk is full", 0.0)), 0.0) == []


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0, "0/s"),
        (1 / 60, "1/min"),
        (0.5, "30/min"),
        (1.0, "1.0/s"),
        (2.54, "2.5/s"),
        (10.0, "10/s"),
        (118.4, "118/s"),
        (12345.6, "12346/s"),
    ],
)
def test_a_rate_is_said_as_exactly_as_it_is_of_use(rate, text):
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State.BUILDING, "Starting: setting up the handler"),
        (State.CONNECTING, f"Connecting to the broker at {BROKER}"),
        (State.SUBSCRIBING, f"Connected to the broker at {BROKER}, subscribing"),
        (State.PAUSED, "Paused; 3 handled, up 0 s"),
        (State.FAILING, "Failing: waiting for 2 running"),
        (State.DRAINING, "Stopping: waiting for 2 running"),
        (State.STOPPED, "Stopped; since its start: 3 handled, 1 failed"),
    ],
)
def test_each_state_has_its_line(state, text):
    assert line(state, counts=Snapshot(acked=3, failed=1), awaited="2 running") == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State.BUILDING, "Starting: refused"),
        (State.CONNECTING, f"Waiting for the broker at {BROKER}: refused"),
        (State.SUBSCRIBING, "refused"),
        (State.PAUSED, "Paused: refused; 0 handled, up 0 s"),
        (State.FAILING, "Failing: waiting for the connection; refused"),
        (State.STOPPED, "refused"),
    ],
)
def test_the_line_shows_the_trouble_of_an_instance_that_does_not_consume(state, text):
    assert line(state, trouble="refused") == text


@pytest.mark.parametrize("state", [State.CONSUMING, State.DRAINING])
def test_trouble_of_the_past_is_not_shown(state):
    assert "refused" not in line(state, trouble="refused")


@pytest.mark.parametrize("state", [State.BUILDING, State.CONNECTING, State.SUBSCRIBING])
@pytest.mark.parametrize("trouble", ["", "refused; attempt 4 in 8 s"])
def test_the_line_of_a_start_shows_when_it_gives_up(state, trouble):
    text = line(state, trouble=trouble, left=272.5)
    assert text == f"{line(state, trouble=trouble)}; gives up in 4 min"


def test_the_line_of_a_pause_during_the_start_shows_when_it_gives_up():
    text = line(State.PAUSED, trouble="disk full", left=60)
    assert text == "Paused: disk full; gives up in 60 s; 0 handled, up 0 s"


@pytest.mark.parametrize("state", [State.FAILING, State.DRAINING])
def test_the_line_of_a_drain_shows_the_running_handlers_and_the_longest_wait(state):
    text = line(state, awaited="2 running", left=41.9)
    assert text.endswith("waiting for 2 running, 41 s at the most")


def test_every_state_has_a_line_of_its_own():
    assert len({line(state) for state in State}) == len(State)


@given(st.sampled_from(State), st.integers(0, 10**9), st.floats(0, 10**6), st.floats(0, 10**9))
def test_the_numbers_of_every_state_fit_into_200_characters_of_ascii(state, count, rate, time):
    counts = Snapshot(acked=count, failed=count, held=count)
    numbers = {"held": count, "deferred": count, "quarantined": count, "lag": count}
    text = line(state, counts=counts, rate=rate, up=time, left=time, awaited="2 running", **numbers)
    assert len(text) <= 200
    assert text.isascii()
    assert text.isprintable()


def test_counts_of_zero_are_left_out_except_successes():
    assert counts_text(Snapshot()) == "0 handled"
    assert counts_text(Snapshot(acked=5, requeued=4, rejected=3, undecodable=2, failed=1)) == (
        "5 handled, 4 requeued, 3 rejected, 2 undecodable, 1 failed"
    )
    assert counts_text(Snapshot(acked=4, held=3, deferred=2, quarantined=1)) == (
        "4 handled, 3 held, 2 deferred, 1 quarantined"
    )


def test_no_two_pieces_of_news_make_the_same_line():
    news = {"queues": 2, "rate": 1.0, "held": 1, "deferred": 1, "quarantined": 1, "lag": 1}
    lines = [line(State.CONSUMING, **{name: value}) for name, value in news.items()]
    assert all(one != other for one, other in itertools.combinations(lines, 2))
