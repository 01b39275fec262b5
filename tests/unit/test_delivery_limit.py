# SPDX-License-Identifier: GPL-2.0-or-later
"""How often a quorum queue lets a message come back, and when it is too often."""

import pytest

from consumer_framework.core.delivery_limit import count_of, is_near, limit_of, version_of
from consumer_framework.testing import make_delivery

QUORUM = {"x-queue-type": "quorum"}


@pytest.mark.parametrize(
    ("arguments", "version", "limit"),
    [
        ({}, (4, 1), None),
        (QUORUM, None, None),
        (QUORUM, (3, 13), None),
        (QUORUM, (4, 0, 5), 20),
        ({**QUORUM, "x-delivery-limit": 3}, (3, 10), 3),
        ({"x-delivery-limit": 3}, None, 3),
        ({**QUORUM, "x-delivery-limit": -1}, (4, 1), None),
        ({**QUORUM, "x-delivery-limit": True}, (4, 1), 20),
    ],
)
def test_the_limit_is_that_of_the_arguments_or_the_brokers_default(arguments, version, limit):
    assert limit_of(arguments, version) == limit


def test_a_queue_of_unknown_arguments_that_counts_is_a_quorum_queue():
    assert limit_of({}, (4, 1), is_quorum=True) == 20


@pytest.mark.parametrize(
    ("headers", "count"),
    [(None, None), ({}, None), ({"x-delivery-count": 2}, 2), ({"x-delivery-count": "2"}, None)],
)
def test_the_count_is_what_the_queue_says(headers, count):
    assert count_of(make_delivery(headers=headers)) == count


@pytest.mark.parametrize(("limit", "first"), [(0, 0), (1, 1), (2, 1), (3, 2), (20, 19)], ids=str)
def test_one_return_is_left_for_a_crash(limit, first):
    near = [is_near(count, limit) for count in (first - 1, first, first + 1)]
    assert near == [False, True, True]


@pytest.mark.parametrize(
    ("text", "version"), [("4.1.2", (4, 1, 2)), ("3.10.0-rc.1", (3, 10, 0)), ("LavinMQ", None)]
)
def test_a_version_is_what_begins_with_numbers(text, version):
    assert version_of(text) == version
