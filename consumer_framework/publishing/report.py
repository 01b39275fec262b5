# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about a relay, as values. It imports no database: commands show them quickly."""

from __future__ import annotations

from dataclasses import dataclass, field

from consumer_framework.core.text import about, plural, rate_text


@dataclass(frozen=True, slots=True)
class PausedTopic:
    """A topic that nothing is sent to until a time of the epoch."""

    exchange: str
    topic: str
    until: float


@dataclass(frozen=True, slots=True)
class RelayReport:
    """A relay, and its outbox, at one moment.

    Attributes:
        state: ``"starting"``, ``"sending"``, ``"waiting"`` (no endpoint takes messages),
            ``"standby"`` (another relay sends), ``"failing"`` (the database cannot be used),
            ``"idle"`` (an instance's own, before its first message).
        trouble: The reason for ``"waiting"`` or ``"failing"``; ``""`` for none.
        next_attempt: With ``"waiting"``: seconds until the next attempt; None otherwise.
        endpoint: ``HOST:PORT`` of the broker in use; ``""`` without one.
        database: The database of the outbox, without a password.
        messenger: The name of the messenger.
        rate: Messages sent in a second, over the last minute.
        up: Seconds since the start of the relay.
        waiting: The number of messages to send; None if they were not counted yet.
        retrying: Those of them that failed, or are behind one that failed.
        dead: The number of messages that wait for an operator.
        oldest: Seconds since the oldest waiting message was published; None for none.
        paused: The topics that are paused.
        counts: The counts since the start of the relay, by the names of :class:`.RelayCounters`.
        last_error: The reason of the last failure since the start, ``""`` for none.
    """

    state: str = "starting"
    trouble: str = ""
    next_attempt: float | None = None
    endpoint: str = ""
    database: str = ""
    messenger: str = ""
    rate: float = 0.0
    up: float = 0.0
    waiting: int | None = None
    retrying: int = 0
    dead: int = 0
    oldest: float | None = None
    paused: tuple[PausedTopic, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    last_error: str = ""

    @property
    def line(self) -> str:
        """One line, as ``systemctl status`` shows it."""
        return ", ".join([self.action, *self._numbers()])

    @property
    def action(self) -> str:
        """The present action of the relay, without the numbers of its outbox."""
        match self.state:
            case "sending":
                return f"sending to {self.endpoint or self.messenger}, {rate_text(self.rate)}"
            case "waiting":
                when = "" if self.next_attempt is None else f"; again in {about(self.next_attempt)}"
                return f"cannot send: {self.trouble}{when}"
            case "standby":
                return "standby: another relay sends"
            case "idle":
                return "idle: it starts with the first message that a handler publishes"
            case "failing":
                return f"failing: {self.trouble}"
            case _:
                return self.state

    def _numbers(self) -> list[str]:
        parts = []
        if self.waiting is not None:
            parts.append(f"{self.waiting} waiting")
        if self.oldest is not None:
            parts.append(f"oldest {about(self.oldest)}")
        if self.dead:
            parts.append(f"{self.dead} dead")
        if self.paused:
            parts.append(f"{plural(len(self.paused), 'topic')} paused")
        return [*parts, f"{self.counts.get('sent', 0)} sent", f"up {about(self.up)}"]
