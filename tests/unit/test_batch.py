# SPDX-License-Identifier: GPL-2.0-or-later
"""Several messages that a handler gets at once, and the fate of each of them."""

import pytest
from fedora_messaging.message import Message

from consumer_framework import BatchConsumer, Drop, Retry, Skip
from consumer_framework.author.batch import Batch
from consumer_framework.core.disposition import Ack, Hold
from consumer_framework.testing import Harness


def message(n):
    return Message(topic="org.example.test", body={"n": n})


def test_a_batch_is_a_sequence_of_its_messages():
    first, second, third = messages = [message(1), message(2), message(3)]
    batch = Batch(iter(messages))
    assert len(batch) == 3
    assert list(batch) == messages
    assert batch[0] is first
    assert batch[-1] is third
    assert batch[1:] == [second, third]
    assert second in batch
    assert not Batch([])


def test_each_message_fails_for_itself_and_the_last_error_counts():
    first, second = message(1), message(2)
    batch, error = Batch([first, second]), ValueError()
    batch.fail(second, KeyError())
    batch.fail(second, error)
    assert batch.error_of(0) is None
    assert batch.error_of(1) is error


def test_of_equal_messages_the_very_one_fails():
    first = message(1)
    second = Message(topic=first.topic, body=first.body, properties=first._properties)
    assert first == second
    batch = Batch([first, second])
    batch.fail(second, ValueError())
    assert batch.error_of(0) is None
    assert batch.error_of(1) is not None


def test_a_message_that_is_not_in_the_batch_cannot_fail():
    with pytest.raises(ValueError, match="not in the batch"):
        Batch([message(1)]).fail(message(1), ValueError())


# In an instance.


class Sums(BatchConsumer):
    """Notes its batches; messages say themselves how they fail."""

    def __init__(self, config):
        super().__init__(config)
        self.batches = config["batches"]

    def handle_batch(self, messages):
        self.batches.append([message.body["n"] for message in messages])
        for one in messages:
            error = ERRORS.get(one.body["n"])
            if error is not None:
                messages.fail(one, error)
        if any(one.body["n"] == 99 for one in messages):
            raise OSError("all")


ERRORS = {3: ValueError("three"), 4: Drop("four"), 5: Skip("five"), 6: Retry(after=30)}


class Later(Sums):
    async def handle_batch(self, messages):
        super().handle_batch(messages)


BOTH = pytest.mark.parametrize("consumer", [Sums, Later])


def harness_of(consumer, batches, size=3, **more):
    settings = {"batch": {"size": size, "seconds": "1s"}, **more}
    return Harness(consumer, config={"batches": batches}, settings=settings)


@BOTH
def test_a_batch_goes_to_the_handler_when_it_is_full(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        messages = [message(n) for n in (10, 11, 12)]
        assert [harness.deliver(one) for one in messages] == [None, None, Ack()]
        assert batches == [[10, 11, 12]]
        assert harness.acked == messages


@BOTH
def test_a_batch_that_does_not_fill_goes_when_its_first_message_has_waited_long_enough(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        harness.deliver(message(10))
        harness.advance(0.6)
        harness.deliver(message(11))
        harness.advance(0.3)
        assert batches == []
        harness.advance(0.2)
        assert batches == [[10, 11]]
        harness.deliver(message(12))
        harness.advance(0.9)
        assert batches == [[10, 11]], "the next one waits a second of its own"
        harness.advance(0.2)
        assert batches == [[10, 11], [12]]


@BOTH
def test_a_full_batch_leaves_no_timer_to_the_next_one(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        harness.deliver(message(10))
        harness.advance(0.9)
        harness.deliver(message(11))
        harness.deliver(message(12))
        harness.deliver(message(13))
        harness.advance(0.5)
        assert batches == [[10, 11, 12]]
        harness.advance(0.6)
        assert batches == [[10, 11, 12], [13]]


@BOTH
def test_each_message_of_a_batch_has_its_own_fate(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches, size=5) as harness:
        messages = [message(n) for n in (2, 3, 4, 5, 6)]
        for one in messages:
            harness.deliver(one)
        assert batches[0] == [2, 3, 4, 5, 6]
        assert batches[1:] == [[3]], "the retry at once is alone"
        assert harness.acked == [messages[0], messages[3]]
        assert harness.rejected == [messages[2]]
        assert harness.held == [messages[1], messages[4]]
        assert [a.message for a in harness.attempts(messages[1])] == ["three"] * 2


@BOTH
def test_a_batch_that_raises_has_failed_whole_and_its_messages_come_alone_the_next_time(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        messages = [message(n) for n in (10, 99, 11)]
        for one in messages:
            harness.deliver(one)
        assert batches == [[10, 99, 11], [10], [99], [11]]
        assert harness.acked == [messages[0], messages[2]]
        assert harness.held == [messages[1]]


@BOTH
def test_a_message_that_failed_by_itself_keeps_its_error_in_a_batch_that_raises(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        messages = [message(n) for n in (4, 99, 5)]
        for one in messages:
            harness.deliver(one)
        assert batches == [[4, 99, 5], [99]]
        assert harness.rejected == [messages[0]]
        assert harness.acked == [messages[2]]


@BOTH
def test_bytes_that_are_no_message_take_no_others_with_them(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        good = [message(n) for n in (10, 11)]
        harness.deliver(good[0])
        harness.deliver_raw(b"no json")
        harness.deliver(good[1])
        assert batches == [[10, 11]]
        assert harness.acked == good
        assert harness.quarantined == [b"no json"]


@BOTH
def test_behind_bytes_that_are_no_message_each_message_has_its_own_fate_still(consumer):
    with harness_of(consumer, []) as harness:
        harness.deliver_raw(b"no json")
        messages = [message(n) for n in (10, 4)]
        for one in messages:
            harness.deliver(one)
        assert harness.acked == messages[:1]
        assert harness.rejected == messages[1:]


@BOTH
def test_a_batch_of_nothing_but_undecodable_bytes_never_reaches_the_handler(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        for n in range(3):
            harness.deliver_raw(b"no json %d" % n)
        assert batches == []
        assert len(harness.quarantined) == 3


@BOTH
def test_messages_in_the_handler_when_the_process_died_come_alone(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        messages = [message(n) for n in (10, 11, 12)]
        for one in messages[:2]:
            harness.deliver(one)
        harness.deliver(messages[2], kills=1)
        harness.advance(5)
        assert [12] in batches
        assert sorted(n for batch in batches for n in batch) == [10, 11, 12]
        assert harness.acked == messages


@BOTH
def test_a_batch_that_still_gathers_is_given_back_when_the_instance_stops(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        messages = [message(n) for n in (10, 11)]
        for one in messages:
            harness.deliver(one)
        harness.restart()
        assert batches == []
        harness.advance(5)
        assert batches == [[10, 11]]
        assert harness.acked == messages


@BOTH
def test_a_batch_that_still_gathers_is_forgotten_with_its_channel_and_comes_again(consumer):
    batches: list[list[int]] = []
    with harness_of(consumer, batches) as harness:
        messages = [message(n) for n in (10, 11)]
        for one in messages:
            harness.deliver(one)
        harness.cut()
        harness.advance(5)
        assert batches == [[10, 11]]
        assert harness.acked == messages


@BOTH
def test_a_whole_batch_can_be_held(consumer):
    with harness_of(consumer, [], size=10, recovery={"immediate": 0, "hold_slots": 1}) as harness:
        messages = [message(n) for n in range(20, 29)] + [message(99)]
        for one in messages:
            harness.deliver(one)
        assert len(harness.held) == 10
        assert all(isinstance(to, Hold) for to in [harness.deliver(message(99))] if to)


@BOTH
def test_one_message_can_be_handled_without_a_batch(consumer):
    batches: list[list[int]] = []
    result = consumer({"batches": batches}).handle(message(7))
    if result is not None:
        result.close()
    else:
        assert batches == [[7]]
