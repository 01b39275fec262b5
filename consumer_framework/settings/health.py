# SPDX-License-Identifier: GPL-2.0-or-later
"""The thresholds of an instance's condition, and the limits of its queues.

A client of AMQP cannot read the limits of a queue. Those in the queue's arguments are in the file.
Those of a policy are known to the broker's operators only, so that the file has to repeat them.
Fedora's are known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import Field, StrictInt

from consumer_framework.core.health import ConditionLimits
from consumer_framework.core.loss import QueueLimits
from consumer_framework.core.text import Duration

from .table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Fedora's virtual hosts: of its own applications, and of everybody.
PRIVATE, PUBLIC = "/pubsub", "/public_pubsub"

_Count = Annotated[StrictInt, Field(ge=1, le=1 << 50)]


class Thresholds(Table):
    """The thresholds from which on an instance is said to lag, to be slow, and so on."""

    lag: _Count = 1000
    """The number of messages that wait on the broker from which on the instance is `lagging`."""
    lag_time: Annotated[Duration, Field(gt=0)] = 300.0
    """The age of the oldest message that waits from which on the instance is `lagging`."""
    slow: Annotated[Duration, Field(gt=0)] | None = None
    """The time of one run of the handler from which on the instance is `slow`. `heartbeat()` starts
    the time again. Without this key: half of `handler_timeout`; without that limit, never.
    """
    retry_percent: Annotated[StrictInt, Field(ge=1, le=100)] = 50
    """The percentage of the runs of the last 5 minutes that are to be tried again, from which on
    the instance is `retrying`; 1 to 100.
    """
    idle: Annotated[Duration, Field(gt=0)] = 600.0
    """The time without a message after which the instance is `idle`."""
    loss: Duration = 86400.0
    """The time before a loss of messages from which on the status line shows it. 0 shows none."""

    def limits(self, handler_limit: float) -> ConditionLimits:
        """Return the thresholds as the core takes them.

        Args:
            handler_limit: The time limit of one run, in seconds; infinite for none.
        """
        slow = handler_limit / 2 if self.slow is None else self.slow
        share = self.retry_percent / 100
        return ConditionLimits(self.lag, self.lag_time, slow, share, self.idle)


class QueuePolicy(Table):
    """The limits that a policy of the broker's operators gives the queues."""

    max_messages: _Count | None = None
    """The number of messages that a queue keeps at most (`max-length`)."""
    max_bytes: _Count | None = None
    """The size of the messages that a queue keeps at most, in bytes (`max-length-bytes`)."""
    message_ttl: Annotated[Duration, Field(gt=0)] | None = None
    """The age at which messages expire (`message-ttl`)."""
    expires: Annotated[Duration, Field(gt=0)] | None = None
    """The time without a consumer after which the broker deletes a queue (`expires`)."""


# docs.fedoraproject.org/en-US/infra/developer_guide/messaging, and Fedora's Ansible.
_FEDORAS = {
    PRIVATE: QueuePolicy(max_bytes=1 << 30),
    PUBLIC: QueuePolicy(max_bytes=50_000_000, expires=3600.0),
}


def fedoras_policy(amqp_url: str) -> QueuePolicy:
    """Return the policy of Fedora's broker for the virtual host of *amqp_url*."""
    return _FEDORAS.get(virtual_host(amqp_url), QueuePolicy())


def virtual_host(amqp_url: str) -> str:
    """Return the virtual host of *amqp_url* as pika reads it: the first part of the path."""
    parts = urlsplit(amqp_url)
    return unquote(parts.path.split("/")[1]) if len(parts.path) > 1 else "/"


def limits_of(arguments: Mapping[str, Any], policies: Sequence[QueuePolicy]) -> QueueLimits:
    """Return the limits of a queue: the lowest of its arguments and of the policies.

    RabbitMQ takes the lower one where an argument and a policy give the same limit
    (rabbitmq.com/docs/parameters#policies).

    Args:
        arguments: The queue's arguments in the file.
        policies: The policies that may hold for it.
    """
    milliseconds = 0.001
    return QueueLimits(
        messages=_lowest(arguments, "x-max-length", [p.max_messages for p in policies]),
        bytes=_lowest(arguments, "x-max-length-bytes", [p.max_bytes for p in policies]),
        message_ttl=_lowest(
            arguments, "x-message-ttl", [p.message_ttl for p in policies], milliseconds
        ),
        expires=_lowest(arguments, "x-expires", [p.expires for p in policies], milliseconds),
        refuses=str(arguments.get("x-overflow", "")).startswith("reject-publish"),
        is_dead_lettered="x-dead-letter-exchange" in arguments,
        is_renewed=arguments.get("x-queue-type", "classic") == "classic",
    )


def _lowest(
    arguments: Mapping[str, Any], key: str, others: list[Any], unit: float = 1
) -> Any | None:
    written = arguments.get(key)
    own: list[Any] = []
    if isinstance(written, int) and not isinstance(written, bool) and written >= 0:
        own.append(written * unit)
    return min([*own, *(each for each in others if each is not None)], default=None)
