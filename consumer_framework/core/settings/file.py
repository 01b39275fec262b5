# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration file as fedora-messaging defines it."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr

from .brokers import Address, addresses
from .framework import Framework
from .table import Table

# What fedora-messaging declares where a configuration names no queue.
TRANSIENT_QUEUE: dict[str, Any] = {
    "durable": False,
    "auto_delete": True,
    "exclusive": True,
    "arguments": {},
}

_Port = Annotated[StrictInt, Field(ge=1, le=65535)]
_UInt16 = Annotated[StrictInt, Field(ge=0, le=65535)]
# What AMQP has a type for, and any broker takes.
_LARGEST = (1 << 63) - 1
_DEEPEST = 20


def _checked(table: dict[str, Any]) -> dict[str, Any]:
    _check(table, _DEEPEST)
    return table


def _check(value: Any, depth: int) -> None:
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise ValueError("must have no integers of more than 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must have no numbers that are not finite")
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"must be no more than {_DEEPEST} tables deep")
        for each in value.values() if isinstance(value, dict) else value:
            _check(each, depth - 1)


Arguments = Annotated[dict[str, Any], AfterValidator(_checked)]
_UInt32 = Annotated[StrictInt, Field(ge=0, le=4294967295)]


class Queue(Table):
    """A queue to declare and consume from. An empty name lets the broker choose one."""

    durable: StrictBool
    auto_delete: StrictBool
    exclusive: StrictBool
    arguments: Arguments
    passive: StrictBool | None = None


class Binding(Table):
    """Routing keys that bring messages of an exchange to a queue."""

    exchange: StrictStr
    routing_keys: Annotated[list[StrictStr], Field(max_length=10_000)]
    queue: StrictStr = ""
    arguments: Arguments = Field(default={})


class Qos(Table):
    """How much the broker sends ahead, per queue.

    Attributes:
        prefetch_count: None where the file does not say; see :attr:`Settings.prefetch_count`.
    """

    prefetch_size: _UInt32 = 0
    prefetch_count: _UInt16 | None = None


class Tls(Table):
    """PEM files for ``amqps`` URLs."""

    ca_cert: StrictStr | None = None
    certfile: StrictStr | None = None
    keyfile: StrictStr | None = None


class Monitoring(Table):
    """The HTTP server with ``/live`` and ``/ready``; without a port there is none."""

    address: StrictStr = ""
    port: _Port


class Settings(Table):
    """A whole configuration file, with defaults filled in."""

    # What may be, or hold, a secret is not shown by repr().
    amqp_url: StrictStr = Field(repr=False)
    client_properties: Arguments = Field(default={}, repr=False)
    publish_exchange: StrictStr = "amq.topic"
    topic_prefix: StrictStr = ""
    publish_priority: Annotated[StrictInt, Field(ge=0, le=255)] | None = None
    passive_declares: StrictBool = False
    exchanges: dict[str, dict[str, Any]] = Field(default={})
    queues: Annotated[dict[str, Queue], Field(max_length=1000)]
    bindings: Annotated[list[Binding], Field(max_length=10_000)]
    qos: Qos = Qos()
    callback: StrictStr | None = None
    monitoring: Monitoring | None = None
    consumer_config: dict[str, Any] = Field(default={}, repr=False)
    tls: Tls = Tls()
    log_config: dict[str, Any] | None = Field(default=None, repr=False)

    @property
    def framework(self) -> Framework:
        """The framework's own settings; checked when these were made."""
        return Framework.model_validate(self.consumer_config.get("framework", {}))

    @property
    def brokers(self) -> tuple[Address, ...]:
        """Where brokers are, in the order to try them; that of ``amqp_url`` first."""
        return addresses(self.amqp_url, self.framework.brokers)

    @property
    def prefetch_count(self) -> int:
        """How many messages the broker sends ahead, per queue: as written, or as slots need."""
        written = self.qos.prefetch_count
        return self.framework.prefetch_count if written is None else written

    def bindings_of(self, queue: str) -> list[Binding]:
        """The bindings of the queue that the configuration calls *queue*."""
        return [binding for binding in self.bindings if binding.queue == queue]
