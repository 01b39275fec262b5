# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries with one ordering key wait behind each other."""

from consumer_framework.core.intake import LaneQueues
from consumer_framework.testing import make_delivery


def of(lane, tag, generation=1, row=0):
    return make_delivery(lane=lane, delivery_tag=tag, generation=generation, row=row)


def lanes_with(*deliveries):
    lanes = LaneQueues()
    return lanes, [lanes.enter(delivery) for delivery in deliveries]


def test_the_first_of_a_lane_may_go_on_and_the_others_may_not():
    lanes, may_go_on = lanes_with(of("a", 1), of("a", 2), of("b", 3), of("a", 4))
    assert may_go_on == [True, False, True, False]
    assert len(lanes) == 2


def test_when_one_leaves_the_next_of_its_lane_follows():
    lanes, _ = lanes_with(of("a", 1), of("a", 2), of("b", 3), of("a", 4))
    assert lanes.leave(of("a", 1)) == of("a", 2)
    assert lanes.leave(of("a", 2)) == of("a", 4)
    assert lanes.leave(of("a", 4)) is None
    assert lanes.leave(of("b", 3)) is None
    assert len(lanes) == 0


def test_a_lane_that_all_have_left_is_a_new_one():
    lanes, _ = lanes_with(of("a", 1))
    lanes.leave(of("a", 1))
    assert lanes.enter(of("a", 2))
    assert not lanes.enter(of("a", 3))


def test_only_the_head_can_leave():
    lanes, _ = lanes_with(of("a", 1), of("a", 2))
    assert lanes.leave(of("a", 2)) is None
    assert lanes.leave(of("a", 1, generation=2)) is None
    assert lanes.leave(of("a", 1, row=5)) is None
    assert lanes.leave(of("b", 1)) is None
    assert lanes.leave(of("a", 1)) == of("a", 2)


def test_a_head_that_was_held_may_go_on_when_it_comes_back():
    lanes, _ = lanes_with(of("a", 1), of("a", 2))
    assert lanes.enter(of("a", 1))
    assert len(lanes) == 1, "and is there once"
    assert lanes.leave(of("a", 1)) == of("a", 2)
    assert lanes.leave(of("a", 2)) is None


def test_a_row_of_the_store_is_not_the_delivery_with_that_number():
    _, may_go_on = lanes_with(of("a", 7, generation=0, row=7), of("a", 7), of("a", 7, row=8))
    assert may_go_on == [True, False, False]


def test_the_followers_of_a_lane_are_taken_out_in_order_and_the_head_stays():
    lanes, _ = lanes_with(of("a", 1), of("a", 2), of("b", 3), of("b", 4), of("a", 5))
    assert lanes.followers("a") == [of("a", 2), of("a", 5)]
    assert lanes.followers("a") == lanes.followers("no such") == []
    assert not lanes.enter(of("a", 6))
    assert lanes.leave(of("a", 1)) == of("a", 6)
    assert lanes.leave(of("b", 3)) == of("b", 4)


def test_followers_on_a_channel_that_is_gone_are_forgotten_and_heads_are_not():
    lanes, _ = lanes_with(
        of("a", 1), of("a", 2), of("a", 1, 2), of("a", 3), of("b", 4), of("c", 2, 2), of("c", 5)
    )
    assert lanes.discard(1) == [of("a", 2), of("a", 3), of("c", 5)]
    assert lanes.discard(1) == []
    assert len(lanes) == 1
    assert not lanes.enter(of("b", 2, 2)), "its head has not left"
    assert lanes.leave(of("a", 1)) == of("a", 1, 2)
    assert lanes.leave(of("c", 2, 2)) is None


def test_everything_behind_a_head_can_be_taken_out():
    lanes, _ = lanes_with(of("a", 1), of("a", 2), of("b", 3), of("b", 4))
    assert lanes.clear() == [of("a", 2), of("b", 4)]
    assert lanes.clear() == []
    assert len(lanes) == 0
    assert lanes.leave(of("a", 1)) is None
