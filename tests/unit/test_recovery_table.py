# SPDX-License-Identifier: GPL-2.0-or-later
"""The recovery of messages: each signal, each setting, each state and event."""

from asyncio import sleep
from itertools import pairwise

import pytest
from fedora_messaging import exceptions as upstream
from fedora_messaging.message import Message

from consumer_framework import Defer, DependencyFault, Drop, Halt, Quarantine, Recovery, Retry, Skip
from consumer_framework.core import disposition as to
from consumer_framework.core.attempt import Attempt, History
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
from consumer_framework.core.errors import StoreError
from consumer_framework.core.recovery import OnExhausted, Policy, Rule, Situation, Then, decide
from consumer_framework.settings import Framework
from consumer_framework.testing import Harness, make_delivery

NOW = 1000.0
ATTEMPT = Attempt(1.0, "ValueError", "", "", "ValueError")


def decided(outcome, policy=None, *, attempts=0, spread=0.5, may_hold=True, **changes):
    history = History((ATTEMPT,) * attempts)
    delivery = make_delivery()._replace(received_at=NOW, history=history, **changes)
    if isinstance(outcome, BaseException):
        outcome = Failed(outcome)
    return decide(delivery, outcome, policy or Policy(), Situation(NOW, spread, may_hold))


def message():
    return Message(topic="a.topic", body={"n": 1})


def always(error):
    def handler(_message):
        if error is not None:
            raise error

    return handler


# Signals of an author.


@pytest.mark.parametrize(
    ("outcome", "disposition", "counts"),
    [
        (Succeeded(), to.Ack(), False),
        (Skipped("nothing to do"), to.Ack(), False),
        (SettledBefore(), to.Ack(), False),
        (Retry("busy"), to.Hold(NOW, "Retry: busy"), True),
        (Retry(after=60), to.Hold(NOW + 60, "Retry"), True),
        (Retry(after="5m"), to.Hold(NOW + 300, "Retry"), True),
        (Defer(NOW + 50), to.Hold(NOW + 50, "Defer"), False),
        (Drop("old"), to.Reject("old"), False),
        (Quarantine("odd"), to.Quarantine("odd"), True),
        (DependencyFault("db"), to.Hold(NOW + 30, "db"), False),
        (Halt(4, "enough"), to.Halt(4, requeue=False, reason="enough"), False),
        (Halt(4, requeue=True), to.Halt(4, requeue=True, reason="Halt"), False),
        (ValueError("x"), to.Hold(NOW, "ValueError: x"), True),
        (SystemExit(3), to.Hold(NOW, "SystemExit: 3"), True),
        (Crashed(2), to.Quarantine("the process died 2 times while it was handled"), False),
        (Withdrawn(), to.GiveBack(), False),
        (Blocked(), to.Defer(NOW, "behind an earlier message with the same key"), False),
        (Undecodable(ValueError("x")), to.Quarantine("no valid message: ValueError: x"), True),
    ],
)
def test_each_outcome_has_its_disposition_and_may_consume_an_attempt(outcome, disposition, counts):
    decision = decided(outcome)
    assert decision.disposition == disposition
    assert len(decision.history.attempts) == counts
    fault = isinstance(outcome, DependencyFault)
    assert decision.dependency_fault == fault


@pytest.mark.parametrize(
    ("raised", "disposition"),
    [
        (None, to.Ack),
        (Skip("nothing to do"), to.Ack),
        (upstream.Nack(), to.Hold),
        (upstream.Drop(), to.Reject),
        (upstream.HaltConsumer(4), to.Halt),
    ],
)
def test_each_exception_of_a_handler_has_its_disposition(raised, disposition):
    with Harness(always(raised)) as harness:
        assert isinstance(harness.deliver(message()), disposition)


@pytest.mark.parametrize("code", [-1, 256, "3"])
def test_an_impossible_exit_code_is_never_taken_for_success(code):
    assert decided(Halt(code)).disposition.exit_code == 13


@pytest.mark.parametrize("after", [-1, "soon", True])
def test_a_retry_after_an_invalid_length_of_time_is_refused_where_it_is_made(after):
    with pytest.raises(ValueError, match="length of time"):
        Retry(after=after)


def test_a_foreign_error_with_the_attributes_of_a_signal_is_no_signal():
    class ForeignError(Exception):
        after = until = exit_code = requeue = "odd"

    for then in Then:
        decided(ForeignError(), Policy(rules=(Rule((ForeignError,), then),)))


def test_a_deferral_to_the_past_waits_a_second():
    assert decided(Defer(NOW - 50)).disposition.until == NOW + 1


# Settings and their defaults.


def test_the_defaults_are_the_documented_ones():
    assert Recovery().model_dump(mode="json") == {
        "immediate": 1,
        "delays": [10.0, 60.0, 300.0],
        "hold_slots": 4,
        "ack_timeout": 1800.0,
        "on_exhausted": "quarantine",
        "on_invalid": "quarantine",
        "crash_attempts": 2,
        "breaker": {"consecutive": 5, "probe": [30.0, 300.0]},
        "rules": [],
    }
    assert Framework().recovery == Recovery()


def test_there_are_five_attempts_by_default_with_the_documented_delays():
    with Harness(always(ValueError())) as harness:
        poison = message()
        harness.deliver(poison)
        harness.advance("10m")
        runs = harness.runs(poison)
        gaps = [later - earlier for earlier, later in pairwise(runs)]
        assert gaps == pytest.approx([0, 10, 60, 300], abs=0.1)
        assert harness.quarantined == [poison]
        assert len(harness.attempts(poison)) == 5


@pytest.mark.parametrize(("spread", "wait"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_chance_changes_a_delay_by_a_fifth(spread, wait):
    assert decided(ValueError(), attempts=1, spread=spread).disposition.until == NOW + wait


@pytest.mark.parametrize(
    ("on_exhausted", "disposition"),
    [
        (OnExhausted.QUARANTINE, to.Quarantine("ValueError (5 attempts)")),
        (OnExhausted.DROP, to.Reject("ValueError (5 attempts)")),
        (OnExhausted.REQUEUE, to.Requeue("ValueError (5 attempts)")),
        (OnExhausted.HALT, to.Halt(13, requeue=True, reason="ValueError (5 attempts)")),
    ],
)
def test_on_exhausted_decides_after_the_last_attempt(on_exhausted, disposition):
    policy = Policy(on_exhausted=on_exhausted)
    assert decided(ValueError(), policy, attempts=4).disposition == disposition


@pytest.mark.parametrize(
    ("then", "disposition"),
    [
        (Then.RETRY, to.Hold(NOW, "KeyError: 1")),
        (Then.DEFER, to.Hold(NOW + 300, "KeyError: 1")),
        (Then.DROP, to.Reject("KeyError: 1")),
        (Then.QUARANTINE, to.Quarantine("KeyError: 1")),
        (Then.DEPENDENCY, to.Hold(NOW + 30, "KeyError: 1")),
        (Then.HALT, to.Halt(13, requeue=True, reason="KeyError: 1")),
    ],
)
def test_the_first_rule_that_matches_decides(then, disposition):
    rules = (Rule((OSError,), Then.HALT), Rule((KeyError,), then), Rule((Exception,), Then.DROP))
    decision = decided(KeyError(1), Policy(rules=rules))
    assert decision.disposition == disposition
    assert decision.dependency_fault == (then is Then.DEPENDENCY)


def test_no_rule_overrules_a_signal():
    policy = Policy(rules=(Rule((Exception,), Then.DROP),))
    assert decided(Quarantine("odd"), policy).disposition == to.Quarantine("odd")


# State and event.


@pytest.mark.parametrize(
    ("wait", "more", "disposition"),
    [
        (900, {}, to.Hold),
        (901, {}, to.Defer),
        (10, {"may_hold": False}, to.Defer),
        (10, {"row": 7}, to.Defer),
    ],
)
def test_a_message_is_held_within_the_ceiling_where_there_is_room(wait, more, disposition):
    assert isinstance(decided(Retry(after=wait), **more).disposition, disposition)


def test_a_replay_that_fails_goes_back_to_quarantine_at_once():
    decision = decided(ValueError("x"), row=7, replayed=True)
    assert decision.disposition == to.Quarantine("ValueError: x")


def test_a_redelivery_that_the_store_has_does_not_run():
    with Harness(always(Quarantine("odd"))) as harness:
        harness.deliver_raw(b"no json", message_id="1", headers={})
        assert harness.quarantined == [b"no json"]


def test_a_deliberate_publication_of_the_same_id_runs():
    with Harness(always(Quarantine("odd"))) as harness:
        twice = message()
        harness.deliver(twice)
        harness.deliver(twice)
        assert len(harness.runs(twice)) == 2
        assert len(harness.store.quarantined) == 2


def test_a_deferred_message_runs_when_due_also_after_a_restart():
    def handler(_message):
        if len(harness.runs(late)) == 1:
            raise Retry(after="2h")

    with Harness(handler) as harness:
        late = message()
        assert isinstance(harness.deliver(late), to.Defer)
        harness.crash()
        harness.advance("1h 59m")
        assert harness.deferred == [late]
        harness.advance("2m")
        assert harness.acked == [late]
        assert harness.store.deferred == []


def test_a_message_that_was_redelivered_and_then_deferred_is_not_taken_for_done_with():
    with Harness(always(Retry(after="2h"))) as harness:
        late = message()
        harness.deliver(late, kills=1)
        assert harness.deferred == [late]
        harness.advance("3h")
        assert harness.deferred == [late]
        assert len(harness.attempts(late)) == 2


def test_a_deferred_message_that_kills_the_process_is_quarantined_before_it_runs_again():
    with Harness(always(Retry(after="2h"))) as harness:
        deadly = message()
        harness.deliver(deadly, kills=1)
        assert harness.deferred == [deadly]
        harness.kill_next(deadly, 2)
        harness.advance("3h")
        assert harness.quarantined == [deadly]


def test_undecodable_bytes_are_quarantined_unchanged_and_the_next_message_is_handled():
    with Harness(always(None)) as harness:
        harness.deliver_raw(b"\xff", headers=None, message_id=None, content_encoding="klingon")
        assert harness.deliver(message()) == to.Ack()
        ((delivery, reason),) = harness.store.quarantined
    assert delivery.body == b"\xff"
    assert delivery.properties.headers is None
    assert vars(delivery.properties)["content_encoding"] == "klingon"
    assert reason.startswith("no valid message: ")
    assert len(delivery.history.attempts) == 1


def test_an_open_breaker_gives_back_waiting_messages_and_keeps_one_as_the_probe():
    settings = {"recovery": {"breaker": {"consecutive": 2, "probe": ["30s", "5m"]}}}

    def handler(_message):
        if harness.now < back:
            raise DependencyFault("db")

    with Harness(handler, settings=settings) as harness:
        messages = [message() for _ in range(4)]
        back = harness.now + 100
        for each in messages:
            harness.deliver(each)
        assert harness.paused.startswith("db")
        assert (harness.held, harness.queued) == (messages[:2], messages[2:])
        harness.advance(99)
        assert sum(len(harness.runs(each)) for each in messages) == 3, "one probe, 30 s later"
        harness.advance("5m")
        assert (harness.paused, harness.acked) == ("", messages)
        assert all(harness.attempts(each) == () for each in messages)


def test_a_store_that_cannot_commit_pauses_and_resumes_by_itself():
    with Harness(always(Quarantine("odd"))) as harness:
        first, second = message(), message()
        harness.store.error = StoreError("no space left")
        assert harness.deliver(first) is None
        assert harness.deliver(second) is None
        assert (harness.paused, harness.acked) == ("no space left", [])
        harness.advance("1m")
        assert harness.paused == "no space left"
        harness.store.error = None
        harness.advance("10s")
        assert (harness.paused, harness.quarantined) == ("", [first, second])
        assert len(harness.runs(first)) == 1


def test_a_drain_gives_back_held_messages():
    with Harness(always(ValueError())) as harness:
        first = message()
        harness.deliver(first)
        harness.restart()
        assert harness.requeued == [first]


@pytest.mark.parametrize("ends", [None, Drop("old"), ValueError("x"), Retry(after="2h")])
def test_a_run_during_which_the_connection_is_lost_settles_its_redelivery(ends):
    async def handler(_message):
        await sleep(60)
        if ends is not None:
            raise ends

    with Harness(handler) as harness:
        first = message()
        assert harness.deliver(first) is None
        harness.cut()
        harness.advance(61)
        settled = harness.acked + harness.rejected + harness.held + harness.deferred
        if isinstance(ends, ValueError):
            # Its retry is on its way: the one that comes at once.
            assert len(harness.attempts(first)) == 1
        else:
            assert settled == [first]
            assert len(harness.runs(first)) == 1


def test_a_killed_process_counts_and_the_second_death_quarantines_before_the_run():
    with Harness(always(None)) as harness:
        deadly = message()
        harness.deliver(deadly, kills=5)
        assert harness.quarantined == [deadly]
        assert len(harness.runs(deadly)) == 2


def test_poison_does_not_stop_the_messages_behind_it():
    def handler(received):
        if received.body["n"] < 0:
            raise ValueError

    with Harness(handler) as harness:
        poison = [Message(topic="a", body={"n": -n - 1}) for n in range(20)]
        for each in poison:
            harness.deliver(each)
        good = Message(topic="a", body={"n": 1})
        assert harness.deliver(good) == to.Ack()
        harness.advance("1h")
        assert harness.quarantined == poison
