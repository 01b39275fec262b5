# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of the lifecycle of an instance."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.lifecycle import (
    TABLE,
    Effect,
    Event,
    IllegalEventError,
    State,
    advance,
)

PAIRS = list(itertools.product(State, Event))


def successors(state):
    return {after for (before, _), (after, _) in TABLE.items() if before is state}


def reachable(state):
    found = {state}
    todo = [state]
    while todo:
        new = successors(todo.pop()) - found
        found |= new
        todo += new
    return found


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_event_in_every_state_has_a_row_or_raises(state, event):
    if (state, event) in TABLE:
        assert advance(state, event) == TABLE[state, event]
    else:
        with pytest.raises(
            IllegalEventError, match=f"{event.name} cannot happen to an instance {state.name}"
        ):
            advance(state, event)


@pytest.mark.parametrize("state", State)
def test_every_state_can_reach_the_end_and_is_reached_from_the_start(state):
    assert State.STOPPED in reachable(state)
    assert state in reachable(State.BUILDING)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", [Event.STOP, Event.FAULT])
def test_an_order_to_stop_and_a_fault_are_accepted_in_every_state(state, event):
    after, _ = advance(state, event)
    assert after in (State.FAILING, State.DRAINING, State.STOPPED)


def test_no_event_leaves_the_end():
    assert successors(State.STOPPED) == {State.STOPPED}
    assert successors(State.DRAINING) <= {State.DRAINING, State.STOPPED}


def test_a_first_order_to_stop_lets_a_running_drain_go_on():
    assert advance(State.FAILING, Event.STOP) == (State.DRAINING, ())


def test_a_second_order_to_stop_does_not_wait_for_running_handlers():
    assert advance(State.DRAINING, Event.STOP) == (State.STOPPED, (Effect.CUT_SHORT, Effect.EXIT))


@pytest.mark.parametrize("state", [State.DRAINING, State.FAILING])
def test_a_drain_over_its_time_does_not_wait_for_running_handlers(state):
    assert advance(state, Event.DEADLINE) == (State.STOPPED, (Effect.CUT_SHORT, Effect.EXIT))


def test_only_a_drain_has_a_deadline():
    assert {state for state, event in TABLE if event is Event.DEADLINE} == {
        State.DRAINING,
        State.FAILING,
    }


def test_readiness_is_announced_only_when_every_queue_is_consumed_from():
    ready = {before for before, (_, effects) in TABLE.items() if Effect.ANNOUNCE_READY in effects}
    assert ready == {(State.SUBSCRIBING, Event.SUBSCRIBED)}
    assert TABLE[State.SUBSCRIBING, Event.SUBSCRIBED][0] is State.CONSUMING


@pytest.mark.parametrize("state", [State.CONNECTING, State.SUBSCRIBING, State.CONSUMING])
def test_an_instance_pauses_in_every_state_and_announces_it(state):
    assert advance(state, Event.PAUSE) == (State.PAUSED, (Effect.PAUSE, Effect.ANNOUNCE_STATUS))


def test_a_further_reason_for_a_pause_is_announced_and_starts_no_second_pause():
    assert advance(State.PAUSED, Event.PAUSE) == (State.PAUSED, (Effect.ANNOUNCE_STATUS,))


@pytest.mark.parametrize("event", [Event.CONNECTED, Event.INTERRUPTED, Event.LOST])
def test_no_event_of_the_broker_ends_a_pause(event):
    assert advance(State.PAUSED, event) == (State.PAUSED, (Effect.ANNOUNCE_STATUS,))


def test_a_subscription_that_completes_during_a_pause_is_paused():
    assert advance(State.PAUSED, Event.SUBSCRIBED) == (State.PAUSED, (Effect.PAUSE,))


@pytest.mark.parametrize(
    ("event", "state"),
    [(Event.RESUME, State.SUBSCRIBING), (Event.RESUME_OFFLINE, State.CONNECTING)],
)
def test_after_a_pause_an_instance_has_to_subscribe_again_before_it_consumes(event, state):
    assert advance(State.PAUSED, event) == (state, (Effect.RESUME, Effect.ANNOUNCE_STATUS))


@pytest.mark.parametrize("state", [State.FAILING, State.DRAINING, State.STOPPED])
@pytest.mark.parametrize("event", [Event.PAUSE, Event.RESUME, Event.RESUME_OFFLINE])
def test_a_pause_does_not_delay_the_end(state, event):
    assert advance(state, event) == (state, ())


def live(events):
    """Return the states and effects of a life without its illegal events."""
    state = State.BUILDING
    states = [state]
    effects: list[Effect] = []
    for event in events:
        try:
            state, done = advance(state, event)
        except IllegalEventError:
            continue
        states.append(state)
        effects += done
    return states, effects


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_every_life_connects_drains_and_exits_once_at_most_and_in_that_order(events):
    states, effects = live(events)
    once = [Effect.CONNECT, Effect.DRAIN, Effect.CUT_SHORT, Effect.EXIT]
    done = [effect for effect in effects if effect in once]
    assert done == [effect for effect in once if effect in done]
    assert (states[-1] is State.STOPPED) == (Effect.EXIT in effects)


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_every_life_ends_after_two_orders_to_stop(events):
    states, effects = live([*events, Event.STOP, Event.STOP])
    assert states[-1] is State.STOPPED
    assert effects.count(Effect.EXIT) == 1


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_a_life_never_consumes_before_it_connected(events):
    states, effects = live(events)
    for before, after in itertools.pairwise(states):
        assert after is not State.CONSUMING or before is State.SUBSCRIBING
    if State.CONSUMING in states:
        assert State.SUBSCRIBING in states[: states.index(State.CONSUMING)]
        assert effects.index(Effect.CONNECT) < effects.index(Effect.ANNOUNCE_READY)
