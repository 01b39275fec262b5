# SPDX-License-Identifier: GPL-2.0-or-later
"""What authors and packagers import in their tests.

- The fakes of :mod:`.fakes` stand in for the outside world of :mod:`consumer_framework.core`: no
  broker, no systemd, no time that passes by itself. They are in this package's namespace.
- :class:`.Harness` runs a consumer between them, as an instance would: what authors test with.
  It tells what became of a message as one of the dispositions: :class:`.Ack`, :class:`.Hold`,
  :class:`.Defer`, :class:`.Quarantine`, :class:`.Reject`, :class:`.Requeue`, :class:`.GiveBack`
  or :class:`.Halt`.
- :mod:`.broker` starts a private RabbitMQ node, :mod:`.proxy` a network that a test may cut. They
  are imported by their own names, for they need more than the fakes do.
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
    "make_delivery",
]
