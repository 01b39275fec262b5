# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules by which an instance works, or is stuck."""

import pytest

from consumer_framework.core.health import (
    CANCEL_GRACE,
    HEALTHY,
    PROGRESS_LIMIT,
    HealthFacts,
    Overrun,
    Unhealthy,
    judge,
)
from consumer_framework.core.lifecycle import State

NOW = 10_000.0
AT_WORK = [State.CONNECTING, State.SUBSCRIBING, State.CONSUMING, State.PAUSED]
ELSEWHERE = [state for state in State if state not in AT_WORK]


def facts(state=State.CONSUMING, progress_at=NOW, **more):
    return HealthFacts(state, progress_at, **more)


def overrun(seconds, *, is_cancelled=False):
    return Overrun("message 1", (), NOW - seconds, is_cancelled)


@pytest.mark.parametrize("state", State)
def test_an_instance_without_trouble_is_healthy(state):
    assert judge(facts(state), NOW) == HEALTHY


@pytest.mark.parametrize("state", AT_WORK)
def test_a_handler_over_its_time_is_stuck_in_every_state(state):
    assert judge(facts(state, overruns=(overrun(3),)), NOW) == Unhealthy(
        "the handler does not return: message 1 is 3s over handler_timeout"
    )


@pytest.mark.parametrize("state", ELSEWHERE)
def test_setup_and_drain_have_deadlines_of_their_own(state):
    late = facts(state, NOW - 10 * PROGRESS_LIMIT, overruns=(overrun(900),), confirm_by=NOW - 900)
    assert judge(late, NOW) == HEALTHY


def test_a_cancelled_coroutine_has_a_while_to_end():
    assert judge(facts(overruns=(overrun(CANCEL_GRACE, is_cancelled=True),)), NOW) == HEALTHY
    late = judge(facts(overruns=(overrun(CANCEL_GRACE + 60, is_cancelled=True),)), NOW)
    assert late == Unhealthy(
        "the handler does not end though it was cancelled: message 1 is 1m 30s over handler_timeout"
    )


def test_a_coroutine_that_ends_hides_no_thread_that_does_not():
    runs = (overrun(9, is_cancelled=True), overrun(2))
    assert isinstance(judge(facts(overruns=runs), NOW), Unhealthy)


def test_a_moment_too_long_is_shown_as_a_second():
    verdict = judge(facts(overruns=(overrun(0.01),)), NOW)
    assert isinstance(verdict, Unhealthy)
    assert "1s over" in verdict.reason


@pytest.mark.parametrize("state", [State.CONNECTING, State.SUBSCRIBING])
def test_a_connection_that_is_not_even_tried_is_stuck(state):
    assert judge(facts(state, NOW - PROGRESS_LIMIT), NOW) == HEALTHY
    assert judge(facts(state, NOW - PROGRESS_LIMIT - 60), NOW) == Unhealthy(
        "no attempt to connect or subscribe came to an end for 5m"
    )


@pytest.mark.parametrize("state", [State.CONSUMING, State.PAUSED])
def test_silence_is_healthy_where_no_answer_is_expected(state):
    assert judge(facts(state, 0.0), NOW) == HEALTHY


def test_a_consumer_that_the_broker_no_longer_has_is_missed():
    assert judge(facts(absent="queue a lost its consumer"), NOW) == Unhealthy(
        "queue a lost its consumer"
    )


@pytest.mark.parametrize("state", [state for state in State if state is not State.CONSUMING])
def test_only_a_consuming_instance_misses_a_consumer(state):
    assert judge(facts(state, absent="queue a", confirm_by=0.0), NOW) == HEALTHY


def test_an_old_answer_of_the_broker_proves_nothing():
    assert judge(facts(confirm_by=NOW), NOW) == HEALTHY
    assert judge(facts(confirm_by=NOW - 5), NOW) == Unhealthy(
        "whether it consumes is not known for 5s"
    )
