# SPDX-License-Identifier: GPL-2.0-or-later
"""The promises of the port FlightRecorder, kept by the real one and by the fake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from consumer_framework.adapters.flight import Flight
from consumer_framework.core.attempt import History
from consumer_framework.testing import make_delivery
from consumer_framework.testing.fakes import FakeFlightRecorder

if TYPE_CHECKING:
    from consumer_framework.core.ports import FlightRecorder

PLACES = 3


class Fake:
    """Processes that remember in memory."""

    def __init__(self, _directory):
        self.recorder = FakeFlightRecorder(PLACES)

    def die(self):
        self.recorder = self.recorder.crash()


class Real:
    """Processes that remember in a file; nothing is closed when one dies."""

    def __init__(self, directory):
        self.directory = directory
        self.die()

    def die(self):
        self.recorder, _ = Flight.open(self.directory, PLACES)


@pytest.fixture(params=[Fake, Real], ids=["fake", "real"])
def process(request, tmp_path):
    return request.param(tmp_path)


def known(process, delivery):
    """Return *delivery* with the crashes that the recorder knows, as the pipeline does."""
    return delivery._replace(history=History(crashes=process.recorder.crashes_of(delivery)))


def test_it_is_a_flight_recorder(process):
    recorder: FlightRecorder = process.recorder

    assert recorder.crashes_of(make_delivery()) == 0


def test_a_message_in_a_handler_is_charged_with_the_death_of_the_process(process):
    process.recorder.took_off(make_delivery())

    process.die()

    assert process.recorder.crashes_of(make_delivery()) == 1


def test_a_message_that_landed_is_not_charged(process):
    place = process.recorder.took_off(make_delivery())
    process.recorder.landed(place)

    process.die()

    assert process.recorder.crashes_of(make_delivery()) == 0


def test_a_message_in_flight_is_not_charged_while_the_process_lives(process):
    process.recorder.took_off(make_delivery())

    assert process.recorder.crashes_of(make_delivery()) == 0


def test_crashes_add_up(process):
    for expected in range(1, 6):
        process.recorder.took_off(known(process, make_delivery()))
        process.die()
        assert process.recorder.crashes_of(make_delivery()) == expected


def test_a_message_that_does_not_come_again_for_a_while_keeps_its_count(process):
    process.recorder.took_off(make_delivery())
    process.die()

    process.recorder.took_off(make_delivery(message_id="another"))
    process.die()
    process.die()

    assert process.recorder.crashes_of(make_delivery()) == 1
    assert process.recorder.crashes_of(make_delivery(message_id="another")) == 1


def test_a_message_that_landed_after_a_crash_keeps_its_count_until_it_is_settled(process):
    process.recorder.took_off(make_delivery())
    process.die()
    process.recorder.landed(process.recorder.took_off(known(process, make_delivery())))

    process.die()

    assert process.recorder.crashes_of(make_delivery()) == 1


def test_a_settled_message_is_forgotten_for_good(process):
    process.recorder.took_off(make_delivery())
    process.die()

    process.recorder.forget(make_delivery())

    assert process.recorder.crashes_of(make_delivery()) == 0
    process.die()
    assert process.recorder.crashes_of(make_delivery()) == 0


def test_forgetting_a_message_keeps_the_others(process):
    for message_id in "abc":
        process.recorder.took_off(make_delivery(message_id=message_id))
    process.die()

    process.recorder.forget(make_delivery(message_id="b"))
    process.recorder.forget(make_delivery(message_id="never seen"))
    process.die()

    counts = [process.recorder.crashes_of(make_delivery(message_id=one)) for one in "abc"]
    assert counts == [1, 0, 1]


def test_forgetting_a_message_that_never_crashed_is_no_error(process):
    process.recorder.forget(make_delivery())

    assert process.recorder.crashes_of(make_delivery()) == 0


def test_the_fake_has_no_more_places_than_it_was_told():
    recorder = FakeFlightRecorder(1)
    recorder.took_off(make_delivery())

    with pytest.raises(RuntimeError, match="places"):
        recorder.took_off(make_delivery())


def test_places_are_used_again(process):
    for number in range(2000):
        places = [
            process.recorder.took_off(make_delivery(message_id=f"{number}.{n}")) for n in "ab"
        ]
        for place in places:
            process.recorder.landed(place)

    process.recorder.took_off(make_delivery(message_id="last"))
    process.die()

    assert process.recorder.crashes_of(make_delivery(message_id="last")) == 1
    assert process.recorder.crashes_of(make_delivery(message_id=f"{number}.a")) == 0


def test_equal_messages_in_flight_at_once_count_as_one_crash(process):
    process.recorder.took_off(make_delivery())
    process.recorder.took_off(make_delivery())

    process.die()

    assert process.recorder.crashes_of(make_delivery()) == 1


def test_a_place_cannot_land_twice(process):
    place = process.recorder.took_off(make_delivery())
    process.recorder.landed(place)

    with pytest.raises(ValueError, match="nothing took off"):
        process.recorder.landed(place)


ONE = make_delivery(message_id="one", queue="queue", routing_key="topic", body=b"body")
NONE = make_delivery(message_id=None, queue="queue", routing_key="topic", body=b"body")


@pytest.mark.parametrize(
    ("crashed", "other"),
    [
        (ONE, ONE._replace(queue="another")),
        (ONE, make_delivery(message_id="two", queue="queue", routing_key="topic", body=b"body")),
        (ONE, NONE),
        (NONE, ONE),
        (NONE, NONE._replace(queue="another")),
        (NONE, NONE._replace(routing_key="another")),
        (NONE, NONE._replace(body=b"another")),
        (NONE, NONE._replace(routing_key="topicb", body=b"ody")),
        (NONE, make_delivery(message_id="topic", queue="queue")),
        (NONE._replace(routing_key="", body=b""), NONE._replace(routing_key="", body=b"\0")),
    ],
)
def test_no_other_message_is_charged(process, crashed, other):
    process.recorder.took_off(crashed)

    process.die()

    assert process.recorder.crashes_of(crashed) == 1
    assert process.recorder.crashes_of(other) == 0


@pytest.mark.parametrize(
    "delivery",
    [
        make_delivery(message_id="x" * 255, queue="q" * 255),
        make_delivery(message_id="ü" * 500, queue="ß" * 300),
        make_delivery(message_id="\0\ud800\n"),
        make_delivery(message_id=None, body=b"\0" * 100_000, routing_key="ü"),
        make_delivery(message_id="", body=b""),
    ],
    ids=["long", "very long", "no text", "large", "empty"],
)
def test_strange_messages_are_recognised(process, delivery):
    process.recorder.took_off(delivery)

    process.die()

    assert process.recorder.crashes_of(delivery) == 1


def test_a_message_with_an_id_is_recognised_on_another_channel(process):
    process.recorder.took_off(make_delivery())

    process.die()

    again = make_delivery(generation=7, delivery_tag=9, redelivered=True, exchange="another")
    assert process.recorder.crashes_of(again) == 1


@pytest.mark.parametrize("message_id", ["1", None, "i" * 300])
def test_the_route_that_had_the_message_last_is_known(process, message_id):
    delivery = make_delivery(message_id=message_id)
    assert process.recorder.route_of(delivery) == ""
    process.recorder.took_off(delivery.in_route("first"))
    process.die()
    assert process.recorder.route_of(delivery) == "first"
    process.recorder.took_off(known(process, delivery).in_route("second"))
    process.die()

    assert process.recorder.route_of(delivery) == "second"
    assert process.recorder.crashes_of(delivery) == 2
    process.recorder.took_off(known(process, delivery))
    process.die()
    assert process.recorder.route_of(delivery) == ""
