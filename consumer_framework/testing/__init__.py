# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools for the tests of consumers, and for the framework's own.

- :class:`.Harness` runs a consumer as an instance would, without a broker, systemd or a real clock.
  It names the fate of a message as a disposition: :class:`.Ack`, :class:`.Hold`, :class:`.Defer`,
  :class:`.Quarantine`, :class:`.Reject`, :class:`.Requeue`, :class:`.GiveBack` or :class:`.Halt`.
- :func:`.message_of` builds a valid message of any message class, and :func:`.messages` is a
  strategy of hypothesis for them.
- The fakes of :mod:`.fakes` implement the ports of :mod:`consumer_framework.core`. The harness runs
  on them, and a test may use them alone.
- :func:`.capture_outbox` records the messages that any code publishes.
  :mod:`consumer_framework.pytest_plugin` makes it a fixture.
- :mod:`.broker` starts a private RabbitMQ node, with a proxy that a test can cut. Import it by its
  own name: it is the extra ``broker``, and nothing here needs it.
"""

from consumer_framework.core.disposition import (
    Ack,
    Defer,
    Disposition,
    GiveBack,
    Halt,
    Hold,
    Quarantine,
    Reject,
    Requeue,
)
from consumer_framework.publishing.capturing import capture_outbox

from .builders import message_of, messages
from .fakes import (
    FakeAcknowledger,
    FakeClock,
    FakeNotifier,
    FakeObserver,
    FakeProperties,
    make_delivery,
)
from .harness import Harness

__all__ = [
    "Ack",
    "Defer",
    "Disposition",
    "FakeAcknowledger",
    "FakeClock",
    "FakeNotifier",
    "FakeObserver",
    "FakeProperties",
    "GiveBack",
    "Halt",
    "Harness",
    "Hold",
    "Quarantine",
    "Reject",
    "Requeue",
    "capture_outbox",
    "make_delivery",
    "message_of",
    "messages",
]
