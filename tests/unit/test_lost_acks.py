# SPDX-License-Identifier: GPL-2.0-or-later
"""Acknowledgements that were lost with their channel: their messages come back and do not run."""

import pytest

from consumer_framework.core import disposition as to
from consumer_framework.core.delivery import Failed, SettledBefore
from consumer_framework.core.memory import MEMORY_RUNS, MEMORY_SECONDS, MOST_CHANNELS, LostAcks
from consumer_framework.testing import FakeClock, make_delivery


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def acks(clock):
    return LostAcks(clock, prefetch_count=3)


def settle(acks, disposition, **delivery):
    made = make_delivery(**delivery)
    assert acks.arrived(made) is None, "it goes to the handler"
    acks.answered(made, to.rule_for(disposition).answer, disposition.reason)


def again(acks, generation=2, **delivery):
    return acks.arrived(make_delivery(generation=generation, redelivered=True, **delivery))


@pytest.mark.parametrize(
    "disposition", [to.Ack(), to.Defer(0.0), to.Quarantine("odd"), to.Halt(3, requeue=False)]
)
def test_a_message_that_was_settled_is_known_when_it_comes_back(acks, disposition):
    settle(acks, disposition)
    acks.voided(1)
    assert again(acks) == SettledBefore()
    assert again(acks, delivery_tag=2) is None, "of two equal messages, one was settled"


def test_headers_that_the_broker_adds_make_no_other_message(acks):
    settle(acks, to.Ack(), headers={"sender": "one"})
    acks.voided(1)
    assert again(acks, headers={"sender": "one", "x-delivery-count": 1}) == SettledBefore()


def test_a_message_that_was_rejected_is_rejected_again(acks):
    settle(acks, to.Reject("too old"))
    acks.voided(1)
    outcome = again(acks)
    assert isinstance(outcome, Failed)
    assert str(outcome.error) == "too old"


def test_the_next_acknowledgement_may_be_lost_as_well(acks):
    settle(acks, to.Ack())
    acks.voided(1)
    for generation in (2, 3, 4):
        assert again(acks, generation) == SettledBefore()
        acks.voided(generation)


@pytest.mark.parametrize("back", [to.GiveBack(), to.Requeue(), to.Halt(3, requeue=True)])
def test_a_returned_message_runs_even_where_an_equal_message_was_settled(acks, back):
    settle(acks, to.Ack(), delivery_tag=1)
    settle(acks, back, delivery_tag=2)
    acks.voided(1)
    assert again(acks, delivery_tag=1) is None
    assert again(acks, delivery_tag=2) == SettledBefore()


def test_of_two_equal_messages_the_unsettled_one_runs_first(acks):
    """The broker may have got the ack of the settled one: then only the other comes back."""
    settle(acks, to.Ack(), delivery_tag=1)
    acks.arrived(make_delivery(delivery_tag=2))
    acks.voided(1)
    assert again(acks) is None


@pytest.mark.parametrize(
    "other",
    [
        *({"body": b"other"}, {"message_id": "2"}, {"queue": "other"}, {"routing_key": "other"}),
        {"headers": {"sender": "other"}},
    ],
)
def test_another_message_runs(acks, other):
    settle(acks, to.Ack())
    acks.voided(1)
    assert again(acks, **other) is None


def test_a_message_that_is_published_again_runs(acks):
    settle(acks, to.Ack())
    acks.voided(1)
    assert acks.arrived(make_delivery(generation=2)) is None


def test_a_message_without_an_id_runs_again_because_an_equal_one_may_be_another(acks):
    settle(acks, to.Ack(), message_id=None)
    acks.voided(1)
    assert again(acks, message_id=None) is None


def test_of_a_channel_no_more_is_remembered_than_the_broker_sends_ahead(acks):
    for number in range(5):
        settle(acks, to.Ack(), delivery_tag=number, message_id=str(number))
    acks.voided(1)
    known = [n for n in range(5) if again(acks, message_id=str(n)) is not None]
    assert known == [2, 3, 4]


def test_a_larger_prefetch_count_remembers_more(acks):
    acks.resize(5)
    acks.resize(3)
    for number in range(5):
        settle(acks, to.Ack(), delivery_tag=number, message_id=str(number))
    acks.voided(1)
    assert all(again(acks, message_id=str(n)) for n in range(5))


def test_a_message_that_has_not_come_back_for_long_is_forgotten(acks, clock):
    settle(acks, to.Ack())
    acks.voided(1)
    clock.advance(MEMORY_SECONDS)
    assert again(acks) is None


def test_lost_channels_do_not_add_up_for_ever(acks):
    for generation in range(1, MOST_CHANNELS + 2):
        for number in range(3):
            name = f"{generation}-{number}"
            settle(acks, to.Ack(), generation=generation, delivery_tag=number, message_id=name)
        acks.voided(generation)
    assert again(acks, 100, message_id="1-0") is None
    assert again(acks, 100, message_id="2-0") == SettledBefore()


def test_the_memory_is_bounded_without_a_prefetch_count_too(clock):
    acks = LostAcks(clock)
    for number in range(MEMORY_RUNS + 1):
        settle(acks, to.Ack(), delivery_tag=number, message_id=str(number))
    acks.voided(1)
    assert again(acks, message_id="0") is None
    assert again(acks, message_id="1") == SettledBefore()
