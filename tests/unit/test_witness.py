# SPDX-License-Identifier: GPL-2.0-or-later
"""What the broker's counts of a queue say of one of its consumers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.adapters.amqp.presence import Sight, Witness


def absent(*sights, takes_turns=True):
    witness = Witness(takes_turns=takes_turns)
    for sight in sights:
        witness.saw(sight)
    return witness.is_absent


def test_a_consumer_that_was_counted_and_is_no_longer_is_absent_at_the_second_look():
    assert not absent(Sight(1), Sight(0))
    assert absent(Sight(1), Sight(0), Sight(0))


def test_two_looks_that_do_not_agree_prove_nothing():
    assert not absent(Sight(1), Sight(0), Sight(1), Sight(0))


def test_one_that_is_back_is_not_absent():
    assert not absent(Sight(1), Sight(0), Sight(0), Sight(1))


def test_a_queue_that_never_counted_anybody_counts_nobody():
    stream = Sight(0, ready=100)
    assert not absent(*[stream] * 5)
    moving = [Sight(0, ready=100, delivered=n) for n in (0, 3, 9, 9, 9, 9)]
    assert not absent(*moving)


def shared(delivered):
    """A look at a queue that others consume from too, in which messages wait."""
    return Sight(3, ready=40, delivered=delivered)


def test_a_consumer_that_gets_nothing_of_what_waits_is_absent_though_others_are_counted():
    began, worked = shared(0), shared(7)
    assert not absent(began, worked, worked)
    assert absent(began, worked, worked, worked)


@pytest.mark.parametrize(
    "sight",
    [
        Sight(3, ready=0, delivered=7),
        Sight(3, ready=40, delivered=7, has_room=False),
    ],
    ids=["nothing waited", "it could take none"],
)
def test_a_consumer_that_is_passed_over_for_a_reason_is_there(sight):
    began, worked = shared(0), shared(7)
    assert not absent(began, worked, sight, worked, sight, worked, sight, sight)


def test_a_consumer_that_never_got_anything_may_be_one_that_waits_for_its_turn():
    idle = shared(5)
    assert not absent(*[idle] * 9)


def test_one_of_a_queue_with_a_single_active_consumer_may_be_passed_over():
    began, worked = shared(0), shared(7)
    assert not absent(began, worked, worked, worked, worked, takes_turns=False)
    assert absent(began, Sight(0), Sight(0), takes_turns=False)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=30))
def test_a_consumer_that_gets_something_between_any_two_looks_is_there(looks):
    sights = [
        Sight(consumers, ready, delivered, has_room)
        for delivered, (consumers, ready, has_room) in enumerate(looks)
    ]
    assert not absent(*sights)
