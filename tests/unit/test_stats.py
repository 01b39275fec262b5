# SPDX-License-Identifier: GPL-2.0-or-later
"""The counts of runs and dispositions."""

import pytest

from consumer_framework.core import disposition as to
from consumer_framework.core.attempt import NO_HISTORY
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
from consumer_framework.core.errors import Defer, DependencyFault, Drop, Quarantine, Retry
from consumer_framework.core.ports import Ran, Settled
from consumer_framework.core.recovery import Decision
from consumer_framework.core.stats import Counters, Snapshot
from consumer_framework.testing import make_delivery


def ran(outcome):
    return Ran(make_delivery(), outcome)


def settled(outcome, disposition, *, is_void=False):
    return Settled(make_delivery(), outcome, Decision(disposition, NO_HISTORY), is_void)


@pytest.mark.parametrize(
    ("outcome", "disposition", "counts"),
    [
        (Succeeded(), to.Ack(), {"succeeded": 1, "acked": 1}),
        (Skipped("old"), to.Ack(), {"skipped": 1, "acked": 1}),
        (Undecodable(ValueError()), to.Quarantine("bad"), {"undecodable": 1, "quarantined": 1}),
        (Failed(ValueError()), to.Halt(13, requeue=True), {"failed": 1, "requeued": 1}),
        (Failed(ValueError()), to.Hold(5), {"failed": 1, "held": 1}),
        (Failed(ValueError()), to.Quarantine("bad"), {"failed": 1, "quarantined": 1}),
        (Failed(ValueError()), to.Requeue(), {"failed": 1, "requeued": 1}),
        (Failed(Retry()), to.Hold(5), {"held": 1}),
        (Failed(Retry()), to.Defer(5), {"deferred": 1}),
        (Failed(Defer(5)), to.Defer(5), {"deferred": 1}),
        (Failed(DependencyFault()), to.Hold(5), {"held": 1}),
        (Failed(Quarantine()), to.Quarantine("bad"), {"quarantined": 1}),
        (Failed(Drop()), to.Reject(), {"rejected": 1}),
        (Succeeded(), to.Halt(0, requeue=False), {"succeeded": 1, "acked": 1}),
    ],
)
def test_each_delivery_counts_once_as_outcome_and_once_as_disposition(outcome, disposition, counts):
    counters = Counters()
    counters.notify(ran(outcome))
    counters.notify(settled(outcome, disposition))
    assert counters.snapshot() == Snapshot(received=1, **counts)


def test_a_void_settle_counts_the_run_and_no_settle():
    counters = Counters()
    counters.notify(ran(Succeeded()))
    counters.notify(settled(Succeeded(), to.Ack(), is_void=True))
    assert counters.snapshot() == Snapshot(received=1, succeeded=1, void=1)


def test_a_redelivery_that_a_run_answers_for_counts_no_second_run():
    counters = Counters()
    counters.notify(ran(Succeeded()))
    counters.notify(settled(Succeeded(), to.Ack(), is_void=True))
    counters.notify(settled(Succeeded(), to.Ack()))
    assert counters.snapshot() == Snapshot(received=1, succeeded=1, void=1, acked=1)


@pytest.mark.parametrize(
    ("outcome", "disposition", "counts"),
    [
        (SettledBefore(), to.Ack(), {"acked": 1}),
        (Crashed(2), to.Quarantine("it kills"), {"quarantined": 1}),
        (Withdrawn(), to.GiveBack(), {"given_back": 1}),
        (Blocked(), to.GiveBack(), {"given_back": 1}),
        (Blocked(), to.Defer(5), {"deferred": 1}),
    ],
)
def test_a_message_that_did_not_run_counts_by_its_disposition_alone(outcome, disposition, counts):
    counters = Counters()
    counters.notify(settled(outcome, disposition))
    assert counters.snapshot() == Snapshot(**counts)


def test_a_held_delivery_counts_again_when_it_runs_again():
    counters = Counters()
    for disposition in (to.Hold(5), to.Hold(10), to.Quarantine("bad")):
        counters.notify(ran(Failed(ValueError())))
        counters.notify(settled(Failed(ValueError()), disposition))
    assert counters.snapshot() == Snapshot(received=3, failed=3, held=2, quarantined=1)


def test_a_snapshot_does_not_change_with_the_counts():
    counters = Counters()
    before = counters.snapshot()
    counters.notify(ran(Succeeded()))
    assert before == Snapshot()
    assert counters.snapshot().received == 1
