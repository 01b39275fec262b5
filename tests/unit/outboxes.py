# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers of the tests of the outbox: messages, a scripted messenger, a relay with a clock."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from consumer_framework.publishing.events import RelayCounters, RelayEvent, RelayObservers
from consumer_framework.publishing.message import Outgoing
from consumer_framework.publishing.messengers import EVERYTHING, Feature, Result, Sent
from consumer_framework.publishing.policy import Policy
from consumer_framework.publishing.relay import Relay, Step
from consumer_framework.testing.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer_framework.publishing.store import OutboxStore, Row

NOW = 1_700_000_000.0
LEASE = 30.0
_numbers = itertools.count(1)


def message(key: str = "", **changes: Any) -> Outgoing:
    """Return a message that no other call returns."""
    values: dict[str, Any] = {
        "id": f"id-{next(_numbers)}",
        "topic": "app.done",
        "body": b'{"n": 1}',
        "headers": {"fedora_messaging_severity": 20},
        "exchange": "amq.topic",
        "ordering_key": key,
        "created": NOW,
    }
    return Outgoing(**{**values, **changes})


def spooled(*messages: Outgoing, on_failure: str = "spool") -> list[tuple[Outgoing, str]]:
    return [(one, on_failure) for one in messages]


class Scripted:
    """A messenger that does what a test says.

    Attributes:
        answer: Returns the fate of a message.
        refuses: Raised by each :meth:`open`; None to open.
        opening: Called by each :meth:`open`.
        batches: The ids of each batch.
        sent: The messages whose fate was :class:`.Sent`, in order.
    """

    def __init__(self, answer: Callable[[Outgoing], Result] = lambda _: Sent(routed=True)) -> None:
        self.answer = answer
        self.features: frozenset[Feature] = EVERYTHING
        self.refuses: Exception | None = None
        self.opening: Callable[[], object] = bool
        self.batches: list[list[str]] = []
        self.sent: list[Outgoing] = []
        self.is_open = False
        self.opened = 0
        self.endpoint = ""
        self.keeps_window = False

    def open(self) -> None:
        self.opening()
        if self.refuses is not None:
            raise self.refuses
        self.is_open = True
        self.opened += 1

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        assert self.is_open
        assert batch
        self.batches.append([one.id for one in batch])
        results = [self.answer(one) for one in batch]
        pairs = zip(batch, results, strict=True)
        self.sent += [one for one, result in pairs if isinstance(result, Sent)]
        return results

    def close(self) -> None:
        self.is_open = False


class Setup:
    """An outbox with a relay whose clock a test has in its hands. There is no jitter."""

    def __init__(self, store: OutboxStore, policy: Policy | None = None, **options: Any) -> None:
        self.store = store
        self.clock = FakeClock(NOW)
        self.messenger = Scripted()
        self.counters = RelayCounters()
        self.events: list[RelayEvent] = []
        defaults = {"lease": LEASE, "clock": self.clock, "chance": lambda: 0.0}
        self.relay = Relay(
            store,
            self.messenger,
            policy or Policy(),
            observer=RelayObservers(self.counters, self),
            **{**defaults, **options},
        )

    def notify(self, event: RelayEvent) -> None:
        self.events.append(event)

    def put(self, *messages: Outgoing, on_failure: str = "spool") -> None:
        self.store.put(spooled(*messages, on_failure=on_failure))

    def steps(self) -> None:
        """Let the relay send until nothing is due."""
        while self.relay.step() is Step.SENT:
            pass

    def later(self, seconds: float) -> None:
        """Let time pass, and then the relay send."""
        self.clock.advance(seconds)
        self.steps()

    @property
    def sent(self) -> list[str]:
        return [one.id for one in self.messenger.sent]

    @property
    def rows(self) -> list[Row]:
        return self.store.rows()
