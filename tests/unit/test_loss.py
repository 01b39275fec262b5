# SPDX-License-Identifier: GPL-2.0-or-later
"""The forecast of the next loss: which one, when, and the cure."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.loss import (
    Certificate,
    LossFacts,
    QueueFacts,
    QueueLimits,
    StoreFacts,
    next_loss,
)

DAY = 86400.0
GIB = 1 << 30


def of_queue(limits, **more) -> Any:
    return next_loss(LossFacts((QueueFacts("builds", limits, **more),)))


def of_store(**more) -> Any:
    return next_loss(LossFacts(store=StoreFacts("/var/lib/x", **more)))


def test_nothing_in_sight_is_no_loss():
    assert next_loss(LossFacts()) is None
    assert of_queue(QueueLimits(), ready=5, growth=1.0, age=3.0, aging=1.0, unused=9.0) is None


def test_a_queue_that_grows_reaches_its_number_of_messages():
    loss = of_queue(QueueLimits(messages=1000), ready=400, growth=2.0)
    assert loss.seconds == 300
    assert loss.subject == 'queue "builds" reaches 1,000 messages and drops its oldest messages'
    assert "fm-consumer scale" in loss.cure


def test_a_queue_that_grows_reaches_its_size():
    loss = of_queue(QueueLimits(bytes=GIB), ready=0, growth=1024.0, body_size=1024.0)
    assert loss.seconds == 1024
    assert loss.subject == 'queue "builds" reaches 1.0 GiB and drops its oldest messages'


def test_the_nearer_of_both_caps_counts():
    limits = QueueLimits(messages=100, bytes=GIB)
    assert of_queue(limits, ready=0, growth=1.0, body_size=1.0).seconds == 100
    assert of_queue(limits, ready=0, growth=1.0, body_size=1e9).seconds == 1.1


def test_a_queue_that_is_full_loses_messages_now():
    assert of_queue(QueueLimits(messages=1000), ready=1000, growth=-1.0).seconds == 0
    assert of_queue(QueueLimits(messages=1000), ready=1000).seconds == 0


def test_a_queue_that_keeps_nothing_by_intent_loses_nothing():
    limits = QueueLimits(messages=0, bytes=0, message_ttl=0.0)
    assert of_queue(limits, ready=0, growth=0.0, body_size=9.0, age=0.0, aging=0.0) is None


@pytest.mark.parametrize("growth", [None, 0.0, -5.0, 1e-9])
def test_a_queue_that_does_not_grow_loses_nothing(growth):
    assert of_queue(QueueLimits(messages=1000, bytes=GIB), ready=999, growth=growth) is None


def test_a_size_is_not_forecast_before_a_message_was_seen():
    assert of_queue(QueueLimits(bytes=GIB), ready=999, growth=5.0) is None


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (QueueLimits(messages=1, refuses=True), "refuses new messages"),
        (QueueLimits(messages=1, is_dead_lettered=True), "dead-letters its oldest messages"),
        (QueueLimits(messages=1), "drops its oldest messages"),
    ],
)
def test_the_words_say_what_the_queue_does_at_its_cap(limits, words):
    assert of_queue(limits, ready=5).subject.endswith(words)


def test_messages_expire_when_the_oldest_one_is_too_old():
    loss = of_queue(QueueLimits(message_ttl=3600.0), age=600.0, aging=1.0)
    assert loss.seconds == 3000
    assert loss.subject == 'messages of queue "builds" expire at an age of 1h'
    slower = of_queue(QueueLimits(message_ttl=3600.0), age=600.0, aging=0.5)
    assert slower.seconds == 6000
    assert of_queue(QueueLimits(message_ttl=3600.0), age=600.0, aging=-0.1) is None
    assert of_queue(QueueLimits(message_ttl=3600.0), age=3600.0, aging=-0.1).seconds == 0


def test_messages_that_expire_may_be_dead_lettered():
    limits = QueueLimits(message_ttl=60.0, is_dead_lettered=True)
    assert "are dead-lettered at an age of 1m" in of_queue(limits, age=1.0, aging=1.0).subject


def test_the_broker_deletes_a_queue_that_nobody_consumes_from():
    loss = of_queue(QueueLimits(expires=3600.0), unused=600.0)
    assert loss.seconds == 3000
    assert loss.subject == 'the broker deletes queue "builds" after 1h without a consumer'
    assert of_queue(QueueLimits(expires=3600.0), unused=None) is None
    assert of_queue(QueueLimits(expires=3600.0), unused=7200.0).seconds == 0


def test_the_store_fills_up():
    loss = of_store(used=GIB // 2, growth=GIB / 2000, limit=GIB)
    assert loss.seconds == 1000
    assert loss.subject == "the store reaches 1.0 GiB, and its oldest messages expire"
    assert "quarantine_max_bytes" in loss.cure


def test_quarantined_messages_get_old():
    loss = of_store(quarantined=1, oldest=80 * DAY, max_age=90 * DAY)
    assert loss.seconds == 10 * DAY
    assert of_store(quarantined=0, oldest=None, max_age=90 * DAY) is None


def test_the_disk_fills_up():
    loss = of_store(disk_free=GIB, disk_growth=-GIB / 500)
    assert loss.seconds == 500
    assert loss.subject == "the disk of /var/lib/x is full, and the instance pauses"
    assert of_store(disk_free=GIB, disk_growth=5.0) is None
    assert of_store(disk_free=GIB, disk_growth=None) is None
    assert of_store(disk_free=0, disk_growth=None).seconds == 0


def test_a_certificate_ends():
    facts = LossFacts(certificates=(Certificate("/etc/ca.pem", 9 * DAY), Certificate("/c", DAY)))
    loss: Any = next_loss(facts)
    assert loss.seconds == DAY
    assert loss.subject.startswith("the certificate in /c ends")
    ended: Any = next_loss(replace(facts, certificates=(Certificate("/c", -5.0),)))
    assert ended.seconds == 0


def test_a_loss_after_ten_years_is_none():
    assert next_loss(LossFacts(certificates=(Certificate("/c", 4000 * DAY),))) is None


numbers = st.none() | st.floats(0, 1e12)
growths = st.none() | st.floats(-1e12, 1e12)
limits = st.builds(
    QueueLimits,
    messages=st.none() | st.integers(1, 1 << 50),
    bytes=st.none() | st.integers(1, 1 << 50),
    message_ttl=numbers,
    expires=numbers,
)
queues = st.builds(
    QueueFacts,
    name=st.just("builds"),
    limits=limits,
    ready=st.none() | st.integers(0, 1 << 40),
    growth=growths,
    body_size=numbers,
    age=numbers,
    aging=growths,
    unused=numbers,
)


@given(st.lists(queues, max_size=3), st.lists(st.floats(-1e9, 1e9), max_size=2))
def test_the_nearest_loss_wins_and_is_never_in_the_past(found, ends):
    certificates = tuple(Certificate("/c", end) for end in ends)
    loss = next_loss(LossFacts(tuple(found), certificates=certificates))
    singles = [next_loss(LossFacts((queue,))) for queue in found]
    singles += [next_loss(LossFacts(certificates=(one,))) for one in certificates]
    seconds = [one.seconds for one in singles if one is not None]
    assert (loss.seconds if loss else None) == min(seconds, default=None)
    assert loss is None or (loss.seconds >= 0 and loss.cure and loss.subject)
