# SPDX-License-Identifier: GPL-2.0-or-later
"""The histograms of an instance: how long runs take, and how long messages wait before them."""

import asyncio
import math
from types import SimpleNamespace

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.adapters.executor import Executor
from consumer_framework.author.handler import Handler
from consumer_framework.core.attempt import History
from consumer_framework.core.delivery import Failed, Succeeded
from consumer_framework.core.durations import (
    MOST_NAMES,
    OTHER,
    RUN_BOUNDS,
    Durations,
    Histogram,
    RunKind,
    sent_at,
)
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

SENT = "2026-11-27T20:00:00+00:00"
SENT_AT = 1_795_809_600.0


def count(histogram):
    return sum(histogram.counts)


def sent(at=SENT, **fields):
    properties = pika.BasicProperties(headers={} if at is None else {"sent-at": at})
    given = {"received_at": SENT_AT + 40.0, "arrived_at": 100.0, "queue": "builds", **fields}
    return make_delivery()._replace(properties=properties, **given)


@given(st.lists(st.floats(min_value=0, max_value=1000)))
def test_every_value_is_in_one_class_and_below_its_bound(values):
    histogram = Histogram(RUN_BOUNDS)
    for value in values:
        histogram.add(value)
    found = dict(histogram.cumulative())
    assert found == {
        bound: sum(value <= bound for value in values) for bound in (*RUN_BOUNDS, math.inf)
    }
    assert histogram.sum == pytest.approx(sum(values))


def test_runs_are_told_apart_by_queue_route_and_error():
    durations = Durations()
    durations.ran([sent()], 100.0, 100.2, "")
    durations.ran([sent()], 100.0, 100.4, "")
    durations.ran([sent(route="late")], 100.0, 102.0, "ValueError")
    assert durations.runs.keys() == {
        RunKind("builds", "", ""),
        RunKind("builds", "late", "ValueError"),
    }
    good = durations.runs[RunKind("builds", "", "")]
    assert count(good) == 2
    assert good.sum == pytest.approx(0.6)


def test_the_time_in_the_queue_ends_with_the_start_of_the_run():
    durations = Durations()
    durations.ran([sent()], 105.0, 900.0, "")
    # 40 s until it arrived, 5 s until a slot was free.
    assert durations.waits["builds"].sum == pytest.approx(45.0)


def test_a_batch_is_one_run_of_messages_that_each_waited():
    durations = Durations()
    durations.ran([sent(), sent("2026-11-27T20:00:30+00:00"), sent(None)], 100.0, 101.0, "")
    assert count(durations.runs[RunKind("builds", "", "")]) == 1
    assert durations.waits["builds"].sum == pytest.approx(40.0 + 10.0)
    assert count(durations.waits["builds"]) == 2


@pytest.mark.parametrize(
    "delivery",
    [
        sent(None),
        sent("yesterday"),
        sent(7),
        sent(redelivered=True),
        sent(row=3, arrived_at=0.0),
        sent(history=History(crashes=1)),
        sent()._replace(properties=pika.BasicProperties()),
    ],
    ids=["no time", "no date", "a number", "redelivered", "a row", "a retry", "no headers"],
)
def test_only_first_deliveries_with_a_time_have_waited(delivery):
    durations = Durations()
    durations.ran([delivery], 100.0, 100.1, "")
    assert count(durations.runs[RunKind("builds", "", "")]) == 1
    assert not count(durations.waits["builds"])


def test_a_publisher_whose_clock_is_ahead_lets_nothing_wait_for_less_than_no_time():
    durations = Durations()
    durations.ran([sent("2026-11-27T21:00:00+00:00")], 100.0, 100.1, "")
    assert durations.waits["builds"].sum == 0.0
    assert durations.waits["builds"].counts[0] == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (SENT, SENT_AT),
        ("2026-11-27T20:00:00Z", SENT_AT),
        ("2026-11-27T20:00:00", SENT_AT),
        ("2026-11-27T21:00:00.250+01:00", SENT_AT + 0.25),
        ("0001-01-01T00:00:00+23:00", None),
        ("", None),
        (None, None),
    ],
)
def test_times_are_read_as_fedora_messaging_and_others_write_them(text, seconds):
    assert sent_at(text) == seconds


def test_queues_that_the_broker_names_share_a_name_and_errors_have_a_bound():
    durations = Durations()
    for number in range(2 * MOST_NAMES):
        durations.ran([sent(queue=f"amq.gen-{number}")], 100.0, 100.1, f"Error{number}")
    assert {kind.queue for kind in durations.runs} == {"amq.gen"}
    assert len(durations.runs) == MOST_NAMES + 1
    other = durations.runs[RunKind("amq.gen", "", OTHER)]
    assert count(other) == MOST_NAMES


def test_thousands_of_queue_names_lose_no_count():
    durations = Durations()
    for number in range(3000):
        durations.ran([sent(queue=f"amq.gen-{number}")], 100.0, 100.1, "")
    assert count(durations.runs[RunKind("amq.gen", "", "")]) == 3000


# The executor.


def handler_of(call, batch=None):
    return Handler(name="handler", call=call, call_batch=batch)


def run_all(call, deliveries, batch=None, **limits):
    async def scenario():
        flight = FakeFlightRecorder(len(deliveries))
        executor = Executor(
            handler_of(call, batch), lambda d: SimpleNamespace(id=d.message_id), flight
        )
        outcomes = await asyncio.gather(*map(executor.run, deliveries))
        executor.close()
        return executor.durations, outcomes

    return asyncio.run(scenario())


async def _coroutine(_message):
    await asyncio.sleep(0)


@pytest.mark.parametrize("call", [lambda _message: None, _coroutine], ids=["thread", "coroutine"])
def test_the_executor_counts_each_run(call):
    durations, outcomes = run_all(call, [sent(), sent(), sent()])
    assert outcomes == [Succeeded()] * 3
    assert count(durations.runs[RunKind("builds", "", "")]) == 3


def test_a_run_that_fails_counts_with_the_type_of_its_exception():
    def fail(_message):
        raise LookupError("gone")

    durations, outcomes = run_all(fail, [sent()])
    assert isinstance(outcomes[0], Failed)
    assert list(durations.runs) == [RunKind("builds", "", "LookupError")]
    (histogram,) = durations.runs.values()
    assert 0 < histogram.sum < 60


def test_setup_and_teardown_are_no_runs():
    async def scenario():
        handler = Handler(name="handler", call=_coroutine, setup=lambda: None)
        executor = Executor(handler, lambda d: d, FakeFlightRecorder(1))
        await executor.setup()
        executor.close()
        return executor.durations

    assert asyncio.run(scenario()).runs == {}
