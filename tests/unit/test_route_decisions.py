# SPDX-License-Identifier: GPL-2.0-or-later
"""One decision for a message that several routes have, from the decisions about each of them."""

import itertools

import pika
import pytest

from consumer_framework.core import disposition as to
from consumer_framework.core import errors
from consumer_framework.core.attempt import NO_HISTORY, History, RouteState, attempt_of
from consumer_framework.core.delivery import (
    Delivery,
    Failed,
    Routed,
    RouteResult,
    Succeeded,
    Unrouted,
)
from consumer_framework.core.disposition import rule_for
from consumer_framework.core.recovery import (
    Decision,
    OnExhausted,
    Policy,
    Situation,
    decide,
    result_of,
    state_of,
)
from consumer_framework.core.routed import due_routes

DELIVERY = Delivery("q", 1, 1, False, "amq.topic", "a.b", pika.BasicProperties(), b"{}")
NOW = 1000.0
HERE = Situation(NOW, 0.5, may_hold=True)

ALL = (
    to.Ack(),
    to.Reject("not ours"),
    to.Hold(NOW + 10, "soon"),
    to.Hold(NOW + 20, "later"),
    to.Defer(NOW + 5000, "much later"),
    to.Requeue("spent"),
    to.Quarantine("broken"),
    to.GiveBack(),
    to.Halt(0, requeue=False, reason="enough"),
    to.Halt(3, requeue=True, reason="help"),
)
DONE = (to.Ack, to.Reject)


def routed(*dispositions, history=NO_HISTORY):
    names = (f"r{number}" for number in range(len(dispositions)))
    results = (
        RouteResult(name, Decision(each, history), Succeeded())
        for name, each in zip(names, dispositions, strict=True)
    )
    return Routed(tuple(results))


def combined(*dispositions, delivery=None, policy=Policy(), situation=HERE):  # noqa: B008
    outcome = routed(*dispositions)
    return decide(delivery or DELIVERY, outcome, policy, situation)


def is_done(disposition):
    return isinstance(disposition, DONE) or disposition == ALL[8]


def expected(dispositions):
    """Say the table in other words: what a message with these routes must become."""
    kinds = {type(each) for each in dispositions}
    if to.Halt in kinds:
        first = next(each for each in dispositions if isinstance(each, to.Halt))
        return to.Halt, first.exit_code, not all(map(is_done, dispositions))
    if to.GiveBack in kinds:
        return (to.GiveBack,)
    waits = [each.until for each in dispositions if isinstance(each, to.Hold | to.Defer)]
    if waits:
        return (to.Hold if min(waits) < NOW + 900 else to.Defer), min(waits)
    for kind in (to.Requeue, to.Quarantine, to.Reject):
        if kind in kinds:
            return (kind,)
    return (to.Ack,)


CASES = [case for length in (1, 2, 3) for case in itertools.product(ALL, repeat=length)]


def test_every_combination_of_three_routes_has_the_disposition_of_the_table():
    for case in CASES:
        found = combined(*case).disposition
        kind, *values = expected(case)
        assert type(found) is kind, case
        if isinstance(found, to.Halt):
            assert [found.exit_code, found.requeue] == values, case
        elif isinstance(found, to.Hold | to.Defer):
            assert [found.until] == values, case


def test_a_message_leaves_the_broker_only_if_each_route_is_done_or_the_store_has_it():
    for case in CASES:
        rule = rule_for(combined(*case).disposition)
        leaves = rule.answer in {"ack", "reject"} and rule.write is None
        assert not leaves or all(map(is_done, case)), case


def test_the_states_of_the_routes_are_in_the_history_of_every_combination():
    for case in CASES:
        states = {state.route: state for state in combined(*case).history.routes}
        for number, disposition in enumerate(case):
            state = states.get(f"r{number}")
            assert (state is not None and state.is_done) == is_done(disposition), case
            if isinstance(disposition, to.Hold | to.Defer):
                assert state == (f"r{number}", "later", disposition.until, disposition.reason)
            if isinstance(disposition, to.Quarantine):
                assert state == (f"r{number}", "failed", 0.0, "broken")


def test_a_state_stands_for_the_disposition_that_it_came_from():
    for disposition in ALL:
        state = state_of(RouteResult("r0", Decision(disposition, NO_HISTORY)))
        if state is None:
            assert isinstance(disposition, to.GiveBack | to.Requeue | to.Halt)
        else:
            again = result_of(state, NO_HISTORY)
            assert again.outcome is None
            assert state_of(again) == state


def test_the_reason_names_the_routes_that_decide():
    assert combined(ALL[0], ALL[6], ALL[6]).disposition == to.Quarantine(
        "route r1: broken; route r2: broken"
    )
    assert combined(ALL[6], ALL[3], ALL[2]).disposition == to.Hold(NOW + 10, "route r2: soon")
    assert combined(to.Requeue()).disposition == to.Requeue("route r0")


def test_a_row_of_the_store_waits_there():
    row = DELIVERY._replace(row=3, generation=0)
    assert combined(ALL[0], ALL[2], delivery=row).disposition == to.Defer(
        NOW + 10, "route r1: soon"
    )


def test_without_a_free_hold_slot_the_message_waits_in_the_store_unless_the_broker_must_keep_it():
    full = HERE._replace(may_hold=False)
    assert isinstance(combined(ALL[2], ALL[0], situation=full).disposition, to.Defer)
    keeps = Policy(on_exhausted=OnExhausted.REJECT)
    found = combined(ALL[2], ALL[0], situation=full, policy=keeps).disposition
    assert isinstance(found, to.Requeue)
    nowhere = full._replace(may_store=False)
    assert isinstance(combined(ALL[2], ALL[0], situation=nowhere).disposition, to.Requeue)


def failed(route, count):
    return tuple(attempt_of(ValueError(route), NOW, route) for _ in range(count))


def test_each_route_spends_its_own_attempts():
    policy = Policy(schedule=(0.0, 10.0))
    history = History((*failed("a", 2), *failed("b", 1)))
    delivery = DELIVERY._replace(history=history)
    decisions = {
        route: decide(delivery, Failed(ValueError("again"), route=route), policy, HERE)
        for route in ("a", "b", "c")
    }
    assert isinstance(decisions["a"].disposition, to.Quarantine)
    assert decisions["b"].disposition == to.Hold(NOW + 10, "ValueError: again")
    assert decisions["c"].disposition == to.Hold(NOW, "ValueError: again")
    assert [a.route for a in decisions["c"].history.attempts] == ["a", "a", "b", "c"]


def test_the_attempts_of_all_routes_come_into_the_history_in_their_order():
    past = History(failed("a", 1), crashes=1)
    delivery = DELIVERY._replace(history=past)
    results = [
        RouteResult(route, decide(delivery, outcome, Policy(), HERE), outcome)
        for route, outcome in (
            ("a", Failed(ValueError("1"), route="a")),
            ("b", Succeeded()),
            ("c", Failed(errors.DependencyFault("database"), route="c")),
            ("d", Failed(KeyError("2"), route="d")),
        )
    ]
    decision = decide(delivery, Routed(tuple(results)), Policy(), HERE)
    assert [attempt.route for attempt in decision.history.attempts] == ["a", "a", "d"]
    assert decision.history.crashes == 1
    assert decision.dependency_fault
    assert {s.route: s.ending for s in decision.history.routes} == {
        "a": "later",
        "b": "done",
        "c": "later",
        "d": "later",
    }


def test_a_replay_forgets_all_states_but_those_of_routes_that_are_done():
    states = (
        RouteState("a", "done"),
        RouteState("b", "failed", reason="broken"),
        RouteState("c", "dropped", reason="not ours"),
        RouteState("d", "later", NOW),
    )
    history = History(failed("b", 2), crashes=2, routes=states).for_replay
    assert history == History(failed("b", 2), 0, (states[0], states[2]))


@pytest.mark.parametrize("changes", [{"row": 1}, {"replayed": True}])
def test_a_stored_message_without_a_route_waits_for_an_operator(changes):
    fresh = DELIVERY
    assert isinstance(decide(fresh, Unrouted(), Policy(), HERE).disposition, to.Reject)
    stored = fresh._replace(**changes)
    assert isinstance(decide(stored, Unrouted(), Policy(), HERE).disposition, to.Quarantine)


def test_a_message_that_has_run_and_lost_its_routes_waits_for_an_operator_too():
    """A reload changed the topic_prefix while the message was held."""
    held = DELIVERY._replace(history=History(failed("a", 1)))
    assert isinstance(decide(held, Unrouted(), Policy(), HERE).disposition, to.Quarantine)
    no_store = HERE._replace(may_store=False)
    assert isinstance(decide(held, Unrouted(), Policy(), no_store).disposition, to.Reject)


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        # The message comes before its time, and something has to run.
        (("a", "b", "c"), ["a"]),
        # Something runs: the others keep their time.
        (("a", "b", "c", "new"), []),
        (("b", "gone"), []),
    ],
)
def test_a_route_runs_before_its_time_only_if_no_other_route_would(routes, expected):
    states = (
        RouteState("a", "later", NOW + 10),
        RouteState("b", "later", NOW + 20),
        RouteState("c", "done"),
    )
    due = due_routes(states, routes, NOW)
    assert [state.route for state in states if due(state)] == expected
    assert due_routes(states, routes, NOW + 30)(states[1])
