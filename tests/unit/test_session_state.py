# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of a session's states."""

import itertools

import pytest

from consumer_framework.adapters.amqp.session_state import (
    TABLE,
    SessionEffect,
    SessionEvent,
    SessionState,
    advance,
)
from consumer_framework.core.lifecycle import IllegalEventError

OFFLINE = {SessionState.OFFLINE, SessionState.PAUSED_OFFLINE}
RUNS_ROUND = {SessionState.SUBSCRIBING, SessionState.ADJUSTING, SessionState.PAUSING}
PAUSED = {SessionState.PAUSED, SessionState.PAUSED_OFFLINE, SessionState.PAUSING}
PAIRS = list(itertools.product(SessionState, SessionEvent))
ALIVE = [state for state in SessionState if state is not SessionState.STOPPING]


def successors(state):
    return {after for after, _ in TABLE[state].values()}


def reachable(state):
    found, todo = {state}, [state]
    while todo:
        new = successors(todo.pop()) - found
        found |= new
        todo += new
    return found


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_event_in_every_state_has_a_row_or_raises(state, event):
    if event in TABLE[state]:
        assert advance(state, event) == TABLE[state][event]
    else:
        with pytest.raises(
            IllegalEventError, match=f"{event.name} cannot happen to a session {state.name}"
        ):
            advance(state, event)


def test_every_state_is_reached_and_can_be_stopped():
    assert reachable(SessionState.OFFLINE) == set(SessionState)
    assert all(advance(state, SessionEvent.STOP)[0] is SessionState.STOPPING for state in ALIVE)


def test_nothing_leaves_the_end_and_a_connection_that_comes_then_is_closed():
    assert successors(SessionState.STOPPING) == {SessionState.STOPPING}
    effects = {event: advance(SessionState.STOPPING, event)[1] for event in SessionEvent}
    assert effects.pop(SessionEvent.OPENED) == (SessionEffect.HANG_UP,)
    assert set(effects.values()) == {()}


@pytest.mark.parametrize("state", ALIVE)
def test_a_loss_leads_offline_and_only_a_connection_leads_back(state):
    after, effects = advance(state, SessionEvent.LOST)
    assert after in OFFLINE
    assert effects == ()
    assert (state in PAUSED) == (after in PAUSED), "a pause outlives connections"
    for event, (target, _) in TABLE[after].items():
        assert target in OFFLINE or event in {SessionEvent.OPENED, SessionEvent.STOP}


@pytest.mark.parametrize("state", ALIVE)
def test_one_round_runs_at_a_time_and_its_end_comes_to_states_that_have_one(state):
    for target, effects in TABLE[state].values():
        starts = SessionEffect.START_ROUND in effects
        assert starts == (target in RUNS_ROUND and state not in RUNS_ROUND)
    ends = {SessionEvent.SUBSCRIBED, SessionEvent.TAKEN}
    assert ends.issubset(TABLE[state]) == (state in RUNS_ROUND)
    assert all(TABLE[state][end][0] not in RUNS_ROUND for end in ends & TABLE[state].keys())


@pytest.mark.parametrize("state", ALIVE)
def test_a_pause_cancels_consumers_and_a_round_that_runs_ends_with_none(state):
    after, effects = advance(state, SessionEvent.PAUSE)
    assert after in PAUSED
    cancels = SessionEffect.CANCEL_CONSUMERS in effects
    assert cancels == (state not in OFFLINE and state not in PAUSED)
    if after is SessionState.PAUSING:
        for end in (SessionEvent.SUBSCRIBED, SessionEvent.TAKEN, SessionEvent.FAILED):
            cancel = (SessionEffect.CANCEL_CONSUMERS,)
            assert advance(after, end) == (SessionState.PAUSED, cancel)


@pytest.mark.parametrize("state", ALIVE)
def test_only_a_pause_can_be_resumed(state):
    assert (SessionEvent.RESUME in TABLE[state]) == (state in PAUSED)


def test_the_instance_is_told_again_only_after_an_interruption_or_a_pause_or_a_loss():
    reports = {
        (state, event)
        for state, row in TABLE.items()
        for event, (_, effects) in row.items()
        if SessionEffect.REPORT_SUBSCRIBED in effects
    }
    assert reports == {(SessionState.SUBSCRIBING, SessionEvent.SUBSCRIBED)}
    for event in (SessionEvent.WORK_DUE, SessionEvent.SUBSCRIBED):
        after, _ = advance(SessionState.ADJUSTING, event)
        assert after in {SessionState.CONSUMING, SessionState.ADJUSTING}
