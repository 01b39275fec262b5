# SPDX-License-Identifier: GPL-2.0-or-later
"""The disposition of a delivery follows from its outcome and the situation alone."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core import disposition as to
from consumer_framework.core import errors
from consumer_framework.core.attempt import NO_HISTORY, History, attempt_of
from consumer_framework.core.delivery import (
    Blocked,
    Crashed,
    Failed,
    SettledBefore,
    Skipped,
    Succeeded,
    Undecodable,
    Withdrawn,
)
from consumer_framework.core.recovery import (
    OnExhausted,
    OnInvalid,
    Policy,
    Rule,
    Situation,
    Then,
    broken_dependency,
    decide,
)
from consumer_framework.testing import make_delivery

POLICY = Policy()
NOW = 1000.0
# A spread of a half is no jitter.
SITUATION = Situation(now=NOW, spread=0.5, may_hold=True)
DELIVERY = make_delivery(received_at=NOW)
SPENT = History(tuple(attempt_of(ValueError(str(n)), NOW) for n in range(4)))


class LaterRetry(errors.Retry):
    """An author's own signal."""


def decided(outcome, policy=POLICY, situation=SITUATION, **delivery):
    return decide(make_delivery(**{"received_at": NOW, **delivery}), outcome, policy, situation)


def disposition_of(outcome, policy=POLICY, situation=SITUATION, **delivery):
    return decided(outcome, policy, situation, **delivery).disposition


@pytest.mark.parametrize(
    ("outcome", "disposition"),
    [
        (Succeeded(), to.Ack()),
        (Skipped("not ours"), to.Ack()),
        (SettledBefore(), to.Ack()),
        (
            Undecodable(ValueError("no JSON")),
            to.Quarantine("no valid message: ValueError: no JSON"),
        ),
        (Crashed(2), to.Quarantine("the process died 2 times while it was handled")),
        (
            Crashed(2, hung=True),
            to.Quarantine(
                "the handler did not return within handler_timeout; "
                "the process was restarted 2 times because of it"
            ),
        ),
        (Withdrawn(), to.GiveBack()),
        (Blocked(), to.Defer(NOW, "behind an earlier message with the same key")),
        (Failed(errors.Retry("busy")), to.Hold(NOW, "Retry: busy")),
        (Failed(errors.Retry("busy", after="5m")), to.Hold(NOW + 300, "Retry: busy")),
        (Failed(LaterRetry("busy")), to.Hold(NOW, "LaterRetry: busy")),
        (Failed(errors.Defer(NOW + 20, "later")), to.Hold(NOW + 20, "Defer: later")),
        (Failed(errors.Drop("old")), to.Reject("old")),
        (Failed(errors.Quarantine("odd")), to.Quarantine("odd")),
        (Failed(errors.DependencyFault("the database")), to.Hold(NOW + 30, "the database")),
        (Failed(errors.Halt()), to.Halt(0, requeue=False)),
        (Failed(errors.Halt(5, "enough", requeue=True)), to.Halt(5, requeue=True, reason="enough")),
    ],
)
def test_each_outcome_and_each_signal_has_its_disposition(outcome, disposition):
    decision = decided(outcome)
    # A halt that says nothing names itself.
    if isinstance(disposition, to.Halt) and not disposition.reason:
        disposition = to.Halt(disposition.exit_code, disposition.requeue, "Halt")
    assert decision.disposition == disposition
    is_dependency = isinstance(getattr(outcome, "error", None), errors.DependencyFault)
    assert decision.dependency_fault is is_dependency


ANY_ERROR = pytest.mark.parametrize(
    "error", [ValueError("boom"), SystemExit("boom"), KeyboardInterrupt("boom")]
)


@ANY_ERROR
def test_any_other_error_is_tried_again_and_then_quarantined(error):
    first = decided(Failed(error))
    assert first.disposition == to.Hold(NOW, f"{type(error).__name__}: boom")
    assert [attempt.message for attempt in first.history.attempts] == ["boom"]
    last = decided(Failed(error), history=SPENT)
    assert last.disposition == to.Quarantine(f"{type(error).__name__}: boom (5 attempts)")
    assert len(last.history.attempts) == 5


@ANY_ERROR
def test_where_the_last_attempt_is_to_halt_it_requeues_with_upstreams_exit_code(error):
    policy = Policy(schedule=(), on_exhausted=OnExhausted.HALT)
    disposition = disposition_of(Failed(error), policy)
    assert disposition == to.Halt(13, True, f"{type(error).__name__}: boom")


@pytest.mark.parametrize("exit_code", [-1, 256, 1000])
@pytest.mark.parametrize("requeue", [False, True])
def test_an_exit_code_that_the_kernel_cannot_keep_is_a_failure_and_not_success(exit_code, requeue):
    signal = errors.Halt(exit_code, "enough", requeue=requeue)
    disposition = disposition_of(Failed(signal))
    assert isinstance(disposition, to.Halt)
    assert (disposition.exit_code, disposition.requeue) == (13, requeue)
    assert str(exit_code) in disposition.reason


@pytest.mark.parametrize("exit_code", ["3", 2.5])
def test_an_exit_code_that_is_no_number_is_a_failure_and_not_success(exit_code):
    disposition = disposition_of(Failed(errors.Halt(exit_code, "enough")))
    assert isinstance(disposition, to.Halt)
    assert disposition.exit_code == 13


def test_the_first_rule_that_matches_decides():
    policy = Policy(
        rules=(
            Rule((KeyError, IndexError), Then.DROP),
            Rule((LookupError,), Then.QUARANTINE),
            Rule((OSError,), Then.HALT),
        ),
    )
    assert disposition_of(Failed(IndexError("first")), policy) == to.Reject("IndexError: first")
    assert disposition_of(Failed(LookupError("second")), policy) == to.Quarantine(
        "LookupError: second"
    )
    assert disposition_of(Failed(PermissionError("third")), policy) == to.Halt(
        13, True, "PermissionError: third"
    )
    assert disposition_of(Failed(ValueError("none")), policy) == to.Hold(NOW, "ValueError: none")


def test_no_rule_overrides_a_signal_of_the_author():
    policy = Policy(rules=(Rule((BaseException,), Then.HALT),))
    assert disposition_of(Failed(errors.Drop("old")), policy) == to.Reject("old")
    assert disposition_of(Succeeded(), policy) == to.Ack()
    assert isinstance(disposition_of(Undecodable(ValueError()), policy), to.Quarantine)


ERRORS = [
    ValueError,
    errors.Retry,
    lambda: errors.Defer(NOW + 5),
    errors.Drop,
    errors.Quarantine,
    errors.DependencyFault,
    errors.Halt,
    lambda: errors.Halt(requeue=True),
    SystemExit,
    RecursionError,
]


@given(
    st.one_of(
        st.builds(Succeeded),
        st.builds(Skipped, st.text()),
        st.builds(SettledBefore),
        st.builds(Crashed, st.integers(1)),
        st.builds(Withdrawn),
        st.builds(Blocked),
        st.builds(lambda text: Undecodable(ValueError(text)), st.text()),
        st.builds(lambda make: Failed(make()), st.sampled_from(ERRORS)),
    ),
    st.builds(
        Policy,
        on_exhausted=st.sampled_from(OnExhausted),
        schedule=st.just((0.0, 10.0)),
        strict=st.booleans(),
    ),
    st.builds(SITUATION._replace, spread=st.floats(0, 1), may_hold=st.booleans()),
    st.sampled_from([NO_HISTORY, SPENT]),
)
def test_every_outcome_has_a_disposition_and_only_successes_are_acked_without_a_row(
    outcome, policy, situation, history
):
    """Hold, Requeue, GiveBack, Halt leave it to the broker; Defer, Quarantine are written first."""
    disposition = disposition_of(outcome, policy, situation, history=history)
    kinds = to.Ack | to.Requeue | to.Reject | to.Hold | to.Defer | to.Quarantine | to.Halt
    assert isinstance(disposition, kinds | to.GiveBack)
    done = isinstance(outcome, Succeeded | Skipped | SettledBefore)
    assert isinstance(disposition, to.Ack) == done
    if isinstance(disposition, to.Reject):
        ordered = isinstance(getattr(outcome, "error", None), errors.Drop)
        assert ordered or policy.on_exhausted in {OnExhausted.DROP, OnExhausted.REJECT}
    if isinstance(disposition, to.Hold):
        assert situation.may_hold or disposition.until <= situation.now
    if isinstance(disposition, to.GiveBack):
        assert isinstance(outcome, Withdrawn) or (isinstance(outcome, Blocked) and policy.strict)


class DatabaseGoneError(errors.DependencyFault):
    """An author's own signal."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.DependencyFault("the database is gone"), "the database is gone"),
        (errors.DependencyFault(), "DependencyFault"),
        (DatabaseGoneError("the database is gone"), "the database is gone"),
        (ConnectionRefusedError(111, "refused"), "ConnectionRefusedError: [Errno 111] refused"),
        (TimeoutError("no answer"), "TimeoutError: no answer"),
        (socket.gaierror(-2, "no such name"), "gaierror: [Errno -2] no such name"),
        (errors.Retry("busy"), None),
        (errors.Halt(3, "over"), None),
        (ValueError("a typo"), None),
        (FileNotFoundError("a file"), None),
    ],
)
def test_a_setup_fails_of_a_dependency_by_a_signal_or_a_refused_connection(error, reason):
    assert broken_dependency(error, POLICY) == reason


def test_rules_decide_which_errors_are_dependency_faults():
    rules = (
        Rule((KeyError, ConnectionResetError), Then.HALT),
        Rule((LookupError,), Then.DEPENDENCY),
    )
    policy = Policy(rules=rules)
    assert broken_dependency(IndexError("x"), policy) == "IndexError: x"
    assert broken_dependency(KeyError("x"), policy) is None
    assert broken_dependency(ConnectionResetError("x"), policy) is None
    assert broken_dependency(errors.Drop("x"), policy) is None


# Messages that stay with the broker.

REJECTS = Policy(on_exhausted=OnExhausted.REJECT, on_invalid=OnInvalid.REJECT)
NO_HOLD = Situation(now=NOW, spread=0.5, may_hold=False)
NO_STORE = Situation(now=NOW, spread=0.5, may_hold=True, may_store=False)
NEITHER = Situation(now=NOW, spread=0.5, may_hold=False, may_store=False)
ONE_FAILED = History(SPENT.attempts[:1])
INVALID = Undecodable(ValueError("no JSON"))
FAULT = Failed(ValueError("no"))


def test_an_invalid_or_exhausted_message_is_rejected_to_the_dead_letter_exchange():
    assert disposition_of(INVALID, REJECTS) == to.Reject("no valid message: ValueError: no JSON")
    spent = disposition_of(FAULT, REJECTS, history=SPENT)
    assert spent == to.Reject("ValueError: no (5 attempts)")


def test_a_row_of_the_store_is_never_rejected():
    assert isinstance(disposition_of(INVALID, REJECTS, row=1), to.Quarantine)
    assert isinstance(disposition_of(FAULT, REJECTS, row=1, history=SPENT), to.Quarantine)
    assert isinstance(disposition_of(FAULT, REJECTS, replayed=True), to.Quarantine)


def test_a_message_that_may_be_rejected_later_stays_with_the_broker():
    held = disposition_of(FAULT, REJECTS, history=ONE_FAILED)
    assert held == to.Hold(NOW + 10, "ValueError: no")
    back = disposition_of(FAULT, REJECTS, NO_HOLD, history=ONE_FAILED)
    assert back == to.Requeue("ValueError: no")
    # An author's Defer is no failure, and is as long as it says.
    later = Failed(errors.Defer(NOW + 86400, "tomorrow"))
    assert isinstance(disposition_of(later, REJECTS), to.Defer)


@pytest.mark.parametrize(
    ("outcome", "disposition"),
    [
        (INVALID, to.Reject("no valid message: ValueError: no JSON")),
        (Crashed(2), to.Requeue("the process died 2 times while it was handled")),
        (Blocked(), to.GiveBack()),
        (Failed(errors.Quarantine("odd")), to.Requeue("odd")),
        (Failed(errors.Defer(NOW + 20, "later")), to.Hold(NOW + 20, "Defer: later")),
        (Failed(errors.Defer(NOW + 86400, "later")), to.Hold(NOW + 900, "Defer: later")),
        (Failed(errors.Retry("busy", after="1h")), to.Hold(NOW + 900, "Retry: busy")),
        (Failed(errors.DependencyFault("the database")), to.Hold(NOW + 30, "the database")),
    ],
)
def test_without_a_store_messages_are_held_or_stay_with_the_broker(outcome, disposition):
    assert disposition_of(outcome, situation=NO_STORE) == disposition


def test_without_a_store_a_message_without_a_hold_slot_goes_back_to_its_queue():
    for error in (
        errors.Defer(NOW + 20, ""),
        errors.DependencyFault(""),
        errors.Retry("", after=9),
    ):
        assert isinstance(disposition_of(Failed(error), situation=NEITHER), to.Requeue)
    waited = NO_STORE._replace(waited=900.0)
    old = disposition_of(Failed(errors.Retry("x", after="1h")), situation=waited)
    assert isinstance(old, to.Requeue)
    spent = disposition_of(FAULT, situation=NO_STORE, history=SPENT)
    assert spent == to.Requeue("ValueError: no (5 attempts)")
