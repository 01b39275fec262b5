# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules by which an instance works, or is stuck."""

from typing import Any

import pytest

from consumer_framework.core.health import (
    CANCEL_GRACE,
    CONDITIONS,
    HEALTHY,
    PROGRESS_LIMIT,
    Assessment,
    ConditionFacts,
    ConditionLimits,
    HealthFacts,
    InstanceCondition,
    Overrun,
    Unhealthy,
    condition_of,
    judge,
)
from consumer_framework.core.lag import Lag
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


# The condition, for people.

LIMITS = ConditionLimits(lag=1000, lag_time=300.0, slow=60.0, retry_share=0.5, idle=600.0)
# The facts that make each condition, all with a state that lower conditions share.
CAUSES: dict[InstanceCondition, dict[str, Any]] = {
    InstanceCondition.FAILED: {"state": State.FAILING, "trouble": "the queue is gone"},
    InstanceCondition.DRAINING: {"state": State.DRAINING},
    InstanceCondition.STUCK: {"stuck": "the handler does not return"},
    InstanceCondition.STARTING: {
        "state": State.CONNECTING,
        "was_ready": False,
        "trouble": "connection refused",
    },
    InstanceCondition.PAUSED: {"state": State.PAUSED, "trouble": "the database is gone"},
    InstanceCondition.CONNECTING: {"state": State.SUBSCRIBING, "trouble": "the queue is taken"},
    InstanceCondition.UNHEALTHY: {"fault": "the index is old"},
    InstanceCondition.RETRYING: {"runs": 10, "retried": 5, "retries": 2},
    InstanceCondition.LAGGING: {"lag": 1000, "lag_time": Lag(7200.0, "estimate")},
    InstanceCondition.SLOW: {"longest": "message 1", "longest_time": 360.0},
    InstanceCondition.IDLE: {"idle_for": 720.0},
    InstanceCondition.CONSUMING: {},
}
REASONS = {
    InstanceCondition.FAILED: "the queue is gone",
    InstanceCondition.DRAINING: "",
    InstanceCondition.STUCK: "the handler does not return",
    InstanceCondition.STARTING: "connection refused",
    InstanceCondition.PAUSED: "the database is gone",
    InstanceCondition.CONNECTING: "the queue is taken",
    InstanceCondition.UNHEALTHY: "the index is old",
    InstanceCondition.RETRYING: (
        "5 of 10 runs lately to be tried again, 2 messages waiting for that"
    ),
    InstanceCondition.LAGGING: (
        "1,000 messages wait on the broker, the oldest message waits for about 2 h"
    ),
    InstanceCondition.SLOW: "message 1 is in the handler for 6 min",
    InstanceCondition.IDLE: "no message came for 12 min",
    InstanceCondition.CONSUMING: "",
}


def condition(**more):
    return condition_of(ConditionFacts(**{"state": State.CONSUMING, **more}), LIMITS)


@pytest.mark.parametrize("expected", InstanceCondition)
def test_each_condition_has_its_cause_and_its_reason(expected):
    assert condition(**CAUSES[expected]) == Assessment(expected, REASONS[expected])


def test_the_first_condition_of_the_table_holds():
    facts: dict[str, Any] = {}
    for expected in reversed(list(CONDITIONS)):
        facts |= CAUSES[expected]
        if "state" not in CAUSES[expected] and expected is not InstanceCondition.STUCK:
            assert condition(**facts).condition is expected


def test_every_condition_is_in_the_table():
    assert list(CONDITIONS) == list(InstanceCondition)


def test_calm_conditions_need_no_attention():
    calm = {c.value for c in InstanceCondition if not c.needs_attention}
    assert calm == {"consuming", "idle", "starting", "draining"}


@pytest.mark.parametrize(("exit_code", "expected"), [(0, "draining"), (78, "failed")])
def test_the_exit_code_tells_a_stop_from_a_failure(exit_code, expected):
    assert condition(state=State.STOPPED, exit_code=exit_code).condition.value == expected


def test_an_instance_that_has_consumed_and_lost_the_broker_is_not_starting():
    assert condition(state=State.CONNECTING).condition is InstanceCondition.CONNECTING


def test_a_connection_that_the_broker_blocks_is_a_pause():
    found = condition(blocked="blocked by the broker (low on memory)")
    assert found == Assessment(InstanceCondition.PAUSED, "blocked by the broker (low on memory)")


@pytest.mark.parametrize(
    "more",
    [
        {"runs": 10, "retried": 4, "retries": 2},
        {"runs": 10, "retried": 9, "retries": 0},
        {"runs": 0, "retried": 0, "retries": 9},
        {"lag": 999, "lag_time": Lag(299.0, "message")},
        {"lag": None, "lag_time": Lag()},
        {"longest": "message 1", "longest_time": 59.0},
        {"longest": "", "longest_time": 0.0},
        {"idle_for": 599.0},
    ],
)
def test_below_its_threshold_a_condition_does_not_hold(more):
    assert condition(**more) == Assessment(InstanceCondition.CONSUMING)


def test_the_age_alone_and_the_number_alone_make_a_lag():
    by_age = condition(lag=1, lag_time=Lag(300.0, "message"))
    assert by_age.reason == "the oldest message waits for 5 min"
    by_number = condition(lag=1000, lag_time=Lag(0.0, "message"))
    assert by_number.reason == "1,000 messages wait on the broker"


def test_one_message_that_is_tried_again_is_named_as_one():
    found = condition(runs=1, retried=1, retries=1)
    assert found.reason == "1 of 1 run lately to be tried again, 1 message waiting for that"
