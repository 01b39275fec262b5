# SPDX-License-Identifier: GPL-2.0-or-later
"""What a session makes of a broker that does not accept its very first connection."""

from typing import Any
from unittest import mock

import pika.exceptions as pika_errors
import pytest
from twisted.internet import task

from consumer_framework.adapters.amqp import Channels, Session
from consumer_framework.core.errors import ExitCode
from consumer_framework.core.stats import Snapshot
from consumer_framework.settings import Address


class Listener:
    def __init__(self):
        self.faults = []

    def failed(self, fault):
        self.faults.append(fault)


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def session(listener):
    channels = Channels(lambda flush: None)
    settings: Any = mock.Mock(brokers=[Address("broker", 5672)])
    return Session(settings, 1, channels, listener, task.Clock(), Snapshot)


def test_a_refusal_ends_it_at_once(session, listener):
    session.handshake_refused(pika_errors.ProbableAuthenticationError())
    assert [fault.exit_code for fault in listener.faults] == [ExitCode.CONNECTION]


def test_a_handshake_that_nobody_refused_is_waited_out_however_often(session, listener):
    for _ in range(100):
        session.handshake_broken()
    assert listener.faults == []
