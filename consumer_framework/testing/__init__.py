# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools for the tests of consumers, and for the framework's own.

- :class:`.Harness` runs a consumer as an instance would, without a broker, systemd or a real clock.
  It names the fate of a message as a disposition: :class:`.Ack`, :class:`.Hold`, :class:`.Defer`,
  :class:`.Quarantine`, :class:`.Reject`, :class:`.Requeue`, :class:`.GiveBack` or :class:`.Halt`.
- :func:`.message_of` builds a valid message of any message class, and :func:`.messages` is a
  strategy of hypothesis for them.
- :func:`.assert_idempotent` kills a handler before and after each of its effects, and finds those
  that happen twice.
- The fakes of :mod:`.fakes` implement the ports of :mod:`consumer_framework.core`. The harness runs
  on them, and a test may use them alone.
- :func:`.capture_outbox` records the messages that any code publishes, and
  :func:`.no_unmocked_publish` refuses those that nothing records.
- :mod:`consumer_framework.pytest_plugin` makes fixtures of these.
- :mod:`.broker` starts a private RabbitMQ node, with a proxy that a test can cut. Import it by its
  own name: it is the extra ``broker``, and nothing here needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from consumer_framework.publishing.capturing import CapturedMessages, capture_outbox

    from .builders import message_of, messages
    from .fakes import (
        FakeAcknowledger,
        FakeClock,
        FakeNotifier,
        FakeObserver,
        FakeProperties,
        make_delivery,
    )
    from .harness import ConsumerFactory, Harness
    from .idempotency import assert_idempotent
    from .unmocked import UnmockedPublishError, no_unmocked_publish

__all__ = [
    "Ack",
    "CapturedMessages",
    "ConsumerFactory",
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
    "UnmockedPublishError",
    "assert_idempotent",
    "capture_outbox",
    "make_delivery",
    "message_of",
    "messages",
    "no_unmocked_publish",
]

# Late: pytest's plugin imports this package, in every project of its environment.
_MODULES = {
    "Ack": "consumer_framework.core.disposition",
    "CapturedMessages": "consumer_framework.publishing.capturing",
    "ConsumerFactory": ".harness",
    "Defer": "consumer_framework.core.disposition",
    "Disposition": "consumer_framework.core.disposition",
    "FakeAcknowledger": ".fakes",
    "FakeClock": ".fakes",
    "FakeNotifier": ".fakes",
    "FakeObserver": ".fakes",
    "FakeProperties": ".fakes",
    "GiveBack": "consumer_framework.core.disposition",
    "Halt": "consumer_framework.core.disposition",
    "Harness": ".harness",
    "Hold": "consumer_framework.core.disposition",
    "Quarantine": "consumer_framework.core.disposition",
    "Reject": "consumer_framework.core.disposition",
    "Requeue": "consumer_framework.core.disposition",
    "UnmockedPublishError": ".unmocked",
    "assert_idempotent": ".idempotency",
    "capture_outbox": "consumer_framework.publishing.capturing",
    "make_delivery": ".fakes",
    "message_of": ".builders",
    "messages": ".builders",
    "no_unmocked_publish": ".unmocked",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
