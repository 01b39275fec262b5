# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of an outbox: where messages to publish wait, and how they are sent."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr

from consumer_framework.core.text import Duration

from .table import Table


class OnFailure(Enum):
    """The treatment of a message that the broker does not take now."""

    WAIT = "wait"  # publish() returns when the message is sent
    SKIP = "skip"  # the relay tries once, and discards the message
    SPOOL = "spool"  # the relay tries until the message is sent


class Unroutable(Enum):
    """The treatment of a message that the broker took and routed to no queue."""

    ACCEPT = "accept"  # it counts as sent
    DEAD = "dead"  # it stays in the outbox, for an operator
    RETRY = "retry"  # it is sent again, later


class OutboxRule(Table):
    """Other answers for the messages of some topics."""

    topics: Annotated[StrictStr, Field(min_length=1)]
    """The topics, with their prefix: words with dots between them; `*` stands for one word, `#` for
    any number of words.
    """
    on_failure: OnFailure | None = None
    """The same as `on_failure` of the outbox, for these topics. Without this key, the next rule
    that matches decides, or the outbox.
    """
    unroutable: Unroutable | None = None
    """The same as `unroutable` of the outbox, for these topics."""


class OutboxSettings(Table):
    """The outbox: the table of messages accepted for publishing, and the relay that sends them."""

    database: Annotated[StrictStr, Field(min_length=1)] | None = Field(default=None, repr=False)
    """The database with the table, as a URL of SQLAlchemy: `sqlite:////PATH`,
    `postgresql://USER:PASSWORD@HOST/NAME` or `mariadb://USER:PASSWORD@HOST/NAME`. The password, or
    the whole URL, may be `credential:NAME`, here and in `endpoints`. Without this key:
    `outbox.sqlite3` in the state directory.
    """
    messenger: Annotated[StrictStr, Field(min_length=1)] = "amqp"
    """The way to send: `amqp`, `fedora`, `kombu`, `proton`, `stomp`, `fedmsg`, `dummy`, or another
    entry point of the group `consumer_framework.messengers`.
    """
    endpoints: Annotated[
        tuple[Annotated[StrictStr, Field(min_length=1)], ...], Field(max_length=100)
    ] = Field(default=(), repr=False)
    """The URLs of the brokers in the order to try them. Without this key: `amqp_url` and `brokers`.
    """
    window: Annotated[StrictInt, Field(ge=1, le=10_000)] = 100
    """The number of messages that are sent before the broker has confirmed the first of them; 1 to
    10000. The relay claims more rows at once, as many as it sends in a second: at most 1000.
    """
    lease: Annotated[Duration, Field(ge=1, le=3600)] = 30.0
    """The time after which the messages of a relay that died are sent by another; 1 second to 1
    hour. A relay that lives extends it, also while a slow broker confirms.
    """
    timeout: Annotated[Duration, Field(gt=0)] | None = None
    """The time to connect to an endpoint, and to wait for the next confirmation of a batch. Then
    the next endpoint is tried. It must be shorter than `lease`. Without this key: half of `lease`,
    at most 30 seconds.
    """
    max_body: Annotated[StrictInt, Field(ge=1, le=1 << 30)] = 16 << 20
    """The maximum size of a message's body in bytes. A larger one is refused by `publish()`."""
    lossy: StrictBool = False
    """Send messages that the messenger changes, such as a severity that STOMP cannot carry."""
    on_failure: OnFailure = OnFailure.SPOOL
    """The treatment of a message that the broker does not take now: `"spool"` tries until it is
    sent, `"wait"` does the same and lets `publish()` wait for that, `"skip"` tries once.
    """
    unroutable: Unroutable = Unroutable.ACCEPT
    """The treatment of a message that no queue is bound for: `"accept"` counts it as sent, `"dead"`
    keeps it for an operator, `"retry"` sends it again later.
    """
    rules: Annotated[tuple[OutboxRule, ...], Field(max_length=1000)] = ()
    """Other answers for some topics. The first rule that matches and has the key decides."""
    options: dict[str, Any] = Field(default={}, repr=False)
    """Options of the messenger."""

    @property
    def endpoint_timeout(self) -> float:
        """The ``timeout`` in force, in seconds."""
        return min(self.lease / 2, 30.0) if self.timeout is None else self.timeout
