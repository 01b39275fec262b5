# SPDX-License-Identifier: GPL-2.0-or-later
"""The lag in time: from the times that messages carry, or estimated."""

from datetime import UTC, datetime

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.attempt import History
from consumer_framework.core.lag import UNKNOWN, Lag, lag_of, oldest_by_queue, published_at
from consumer_framework.testing import make_delivery

NOW = 1_700_000_000.0
WITH_ZONE = "2023-11-14T22:13:20+00:00"


def sent(text, **more):
    return pika.BasicProperties(headers={"sent-at": text}, **more)


def delivery(queue="builds", at=NOW, **more):
    properties = sent(datetime.fromtimestamp(at, UTC).isoformat())
    return make_delivery(queue=queue)._replace(properties=properties, **more)


@pytest.mark.parametrize(
    "text", [WITH_ZONE, "2023-11-14T22:13:20", "2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20Z"]
)
def test_the_time_is_that_of_the_publishers_header(text):
    assert published_at(sent(text)) == NOW


def test_the_time_of_the_broker_goes_before_that_of_the_publisher():
    properties = sent("1999-01-01T00:00:00", timestamp=int(NOW))
    assert published_at(properties) == NOW
    properties.headers["timestamp_in_ms"] = int(NOW * 1000) + 250
    assert published_at(properties) == NOW + 0.25


def test_a_time_that_was_decoded_already_counts_too():
    properties = pika.BasicProperties(timestamp=datetime.fromtimestamp(NOW, UTC))
    assert published_at(properties) == NOW


@pytest.mark.parametrize("text", ["", "yesterday", "9999-99-99", 5, None, True, b"x", {"a": 1}])
def test_a_header_that_is_no_time_is_no_time(text):
    assert published_at(sent(text, timestamp=None)) is None


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.none()))
def test_no_header_raises(value):
    properties = pika.BasicProperties(
        headers={"sent-at": value, "timestamp_in_ms": value}, timestamp=value
    )
    moment = published_at(properties)
    assert moment is None or isinstance(moment, int | float)


def test_a_message_without_headers_has_no_time():
    assert published_at(pika.BasicProperties()) is None


def test_the_oldest_message_of_each_queue_counts():
    deliveries = [delivery(at=NOW - 5), delivery(at=NOW - 9), delivery("updates", NOW - 1)]
    assert oldest_by_queue(deliveries) == {"builds": NOW - 9, "updates": NOW - 1}


def test_messages_that_run_again_and_those_of_the_store_have_waited_for_something_else():
    tried = History(attempts=("one",))  # type: ignore[arg-type]
    assert oldest_by_queue([delivery(row=7), delivery(history=tried)]) == {}


def test_the_age_of_the_oldest_message_is_the_lag():
    assert lag_of(NOW - 40, 5000, 1.0, NOW) == Lag(40.0, "message")


def test_a_publisher_whose_clock_is_ahead_makes_no_negative_lag():
    assert lag_of(NOW + 40, 1, 1.0, NOW) == Lag(0.0, "message")


def test_an_empty_queue_does_not_lag():
    assert lag_of(None, 0, 0.0, NOW) == Lag(0.0, "message")


def test_without_a_time_the_rate_gives_an_estimate():
    assert lag_of(None, 600, 2.0, NOW) == Lag(300.0, "estimate")


@pytest.mark.parametrize(("waiting", "rate"), [(None, 2.0), (600, 0.0)])
def test_without_a_number_or_a_rate_the_lag_is_not_known(waiting, rate):
    assert lag_of(None, waiting, rate, NOW) == UNKNOWN
