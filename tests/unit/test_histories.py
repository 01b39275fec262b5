# SPDX-License-Identifier: GPL-2.0-or-later
"""The histories of messages that went back to the broker are remembered."""

import pytest

from consumer_framework.core.attempt import NO_HISTORY, Attempt, History
from consumer_framework.core.memory import MEMORY_MESSAGES, Histories
from consumer_framework.testing import make_delivery

FAILED = History((Attempt(1.0, "ValueError", "", "", "ValueError"),))


def failed(**properties):
    return make_delivery(**properties)._replace(history=FAILED)


def again(**properties):
    return make_delivery(redelivered=True, generation=2, **properties)


def test_a_redelivery_has_the_attempts_of_its_message_once():
    histories = Histories()
    histories.keep(failed())
    assert histories.recall(again()).history == FAILED
    assert histories.recall(again()).history == NO_HISTORY


@pytest.mark.parametrize(
    "other",
    [
        make_delivery(generation=2),
        again(message_id="2"),
        again(queue="another"),
        again(routing_key="another.topic"),
    ],
)
def test_another_message_has_none_of_them(other):
    histories = Histories()
    histories.keep(failed())
    assert histories.recall(other) is other


def test_messages_without_an_id_are_told_apart_by_their_bytes():
    histories = Histories()
    histories.keep(failed(message_id=None, body=b"1"))
    assert histories.recall(again(message_id=None, body=b"2")).history == NO_HISTORY
    assert histories.recall(again(message_id=None, body=b"1")).history == FAILED


def test_the_memory_is_bounded_and_keeps_the_latest():
    histories = Histories()
    for number in range(MEMORY_MESSAGES + 1):
        histories.keep(failed(message_id=str(number)))
    assert histories.recall(again(message_id="0")).history == NO_HISTORY
    assert histories.recall(again(message_id="1")).history == FAILED


def test_a_message_that_never_failed_takes_no_memory():
    histories = Histories()
    histories.keep(failed(message_id="failed"))
    for number in range(MEMORY_MESSAGES + 1):
        histories.keep(make_delivery(message_id=str(number)))
    assert histories.recall(again(message_id="failed")).history == FAILED
