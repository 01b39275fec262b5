# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration file as fedora-messaging defines it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr

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
_UInt32 = Annotated[StrictInt, Field(ge=0, le=4294967295)]


class Queue(Table):
    """A queue to declare and consume from. An empty name lets the broker choose one."""

    durable: StrictBool
    auto_delete: StrictBool
    exclusive: StrictBool
    arguments: dict[str, Any]
    passive: StrictBool | None = None


class Binding(Table):
    """Routing keys that bring messages of an exchange to a queue."""

    exchange: StrictStr
    routing_keys: list[StrictStr]
    queue: StrictStr = ""
    arguments: dict[str, Any] = Field(default={})


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
    client_properties: dict[str, Any] = Field(default={}, repr=False)
    publish_exchange: StrictStr = "amq.topic"
    topic_prefix: StrictStr = ""
    publish_priority: StrictInt | None = None
    passive_declares: StrictBool = False
    exchanges: dict[str, dict[str, Any]] = Field(default={})
    queues: dict[str, Queue]
    bindings: list[Binding]
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
