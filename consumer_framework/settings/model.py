# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of an instance as frozen tables: each setting is declared here, once.

A declaration has the type with its limits, the default, the effort that a change takes
(:class:`Takes`), and, in the docstring below it, the meaning. Everything else derives from that:
the validation (:mod:`.parsing`), the table of a reload (:mod:`.changes`), the reference pages and
the JSON schema (:mod:`.schema`). ``repr=False`` marks a value that may be or hold a secret.

The file format is fedora-messaging's. The framework's own settings are the table
``[consumer_config.framework]``; everything else under ``[consumer_config]`` is the author's.
"""

from __future__ import annotations

import math
import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr

from consumer_framework.core.errors import Problem
from consumer_framework.core.limits import Rate
from consumer_framework.core.ordering import source_of
from consumer_framework.core.recovery import OnExhausted, OnInvalid, Then
from consumer_framework.core.text import Duration, DurationOrEndless

from .brokers import Address, Broker, addresses
from .health import QueuePolicy, Thresholds, fedoras_policy, limits_of
from .outbox import OutboxSettings
from .table import Table, Takes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from consumer_framework.core.loss import QueueLimits


class BreakerSettings(Table):
    """The circuit breaker of a dependency: its threshold and its probes."""

    consecutive: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 5
    """The number of dependency faults in a row, without a success between them, that pause the
    instance. 1 to 1000000.
    """
    probe: Annotated[tuple[Duration, ...], Field(min_length=1, max_length=100)] = (30.0, 300.0)
    """The delay before each probe of the dependency; the last delay repeats. 1 to 100 delays."""


class RuleSettings(Table):
    """A rule: the answer to certain exceptions of a handler.

    A file names exceptions with dots; a class may use the exceptions themselves.
    """

    exceptions: Annotated[
        tuple[str | type[BaseException], ...], Field(min_length=1, max_length=1000)
    ]
    """Names of exceptions: `package.module.Class`, or the bare name of a built-in one. In a class,
    also the exceptions themselves. At least one.
    """
    then: Then
    """The treatment of the message."""


class Recovery(Table):
    """The treatment of failing handlers; also the ``recovery`` attribute of a :class:`.Consumer`.

    Args:
        immediate: The number of retries without a delay.
        delays: The delay before each further retry, randomly up to a fifth longer or shorter.
        hold_slots: The number of messages that may wait in memory, unacknowledged.
        ack_timeout: The broker's ``consumer_timeout``; a message is held for half of it at most.
        on_exhausted: The treatment of a message after its last attempt.
        on_invalid: The treatment of bytes that are no valid message.
        crash_attempts: The number of times that the process may die while the same message is in
            the handler.
        breaker: The circuit breaker of a dependency.
        rules: The treatment of exceptions; the first rule that matches decides.

    A length of time is text such as ``"10s"`` and ``"5m"``, or a number of seconds.
    """

    immediate: Annotated[StrictInt, Field(ge=0, le=100)] = 1
    """The number of retries without a delay; 0 to 100."""
    delays: Annotated[tuple[Duration, ...], Field(max_length=100)] = (10.0, 60.0, 300.0)
    """The delay before each further retry. Each is randomly up to a fifth longer or shorter. At
    most 100 delays. The number of attempts is 1 + `immediate` + the number of `delays`.
    """
    hold_slots: Annotated[StrictInt, Field(ge=0, le=65535)] = 4
    """The number of messages that may be held at once, over all queues; 0 to 65535, and at most
    `prefetch_count` - `slots`. With 0, a message that must wait is deferred.
    """
    ack_timeout: Annotated[Duration, Field(gt=0)] = 1800.0
    """The broker's `consumer_timeout`, which RabbitMQ 4.3 and newer apply to quorum queues only.
    No message is held for longer than half of it.
    """
    on_exhausted: OnExhausted = OnExhausted.QUARANTINE
    """The treatment of a message after its last attempt."""
    on_invalid: OnInvalid = OnInvalid.QUARANTINE
    """The treatment of bytes that are no valid message: `"quarantine"` or `"reject"`."""
    crash_attempts: Annotated[StrictInt, Field(ge=1, le=1000)] = 2
    """The number of times that the process may die while the same message is in the handler; then
    the message is quarantined before it runs again. 1 to 1000.
    """
    breaker: BreakerSettings = BreakerSettings()
    """The number of faults after which a dependency counts as broken."""
    rules: Annotated[tuple[RuleSettings, ...], Field(max_length=1000)] = ()
    """The treatment of certain exceptions. The rules of the file come before those of the class.
    """

    if TYPE_CHECKING:
        # Authors write values as a file has them; a type checker would ask for the parsed ones.
        def __init__(  # noqa: PLR0913 -- the keys of the table
            self,
            *,
            immediate: int = ...,
            delays: Sequence[str | float] = ...,
            hold_slots: int = ...,
            ack_timeout: str | float = ...,
            on_exhausted: OnExhausted
            | Literal["quarantine", "reject", "drop", "requeue", "halt"] = ...,
            crash_attempts: int = ...,
            breaker: BreakerSettings | Mapping[str, Any] = ...,
            rules: Sequence[RuleSettings | Mapping[str, Any]] = ...,
        ) -> None: ...

    def overridden_by(self, other: Recovery) -> Recovery:
        """Return these settings with the keys that *other* sets, and its rules before these."""
        said = {name: getattr(other, name) for name in other.model_fields_set}
        said["rules"] = (*other.rules, *self.rules)
        return self.model_copy(update=said)


class Ordering(Enum):
    """The messages that may overtake each other."""

    NONE = "none"
    KEY = "key"
    STRICT = "strict"


class StoreKind(Enum):
    """The place of deferred and quarantined messages."""

    DISK = "disk"
    MEMORY = "memory"


class Batch(Table):
    """The size of a batch, and the time that it may take to fill.

    Args:
        size: The maximum number of messages.
        seconds: The time that the first message waits for the others.
    """

    size: Annotated[StrictInt, Field(ge=1, le=10_000)] = 100
    """The maximum number of messages in a batch; 1 to 10000. `slots` times `size` is at most 10000.
    """
    seconds: Annotated[Duration, Field(gt=0)] = 1.0
    """The time that the first message waits for the others."""


class Profile(Enum):
    """The rules of a broker's operators."""

    FEDORA = "fedora"
    NONE = "none"


class PublishingKind(Enum):
    """The way of the messages that a handler publishes with fedora-messaging's API."""

    OUTBOX = "outbox"  # they belong to its delivery, and are stored before the acknowledgement
    DIRECT = "direct"  # they are sent at once


def _checked_source(text: str) -> str:
    source_of(text)
    return text


class Framework(Table):
    """``[consumer_config.framework]``: this framework's own settings."""

    brokers: Annotated[tuple[Broker, ...], Field(max_length=100), Takes.RESTART] = ()
    """More brokers of the same cluster, as `HOST`, `HOST:PORT` or an AMQP URL. The instance tries
    them after the one of `amqp_url`, in their order, with the user, password, virtual host and
    `[tls]` of `amqp_url`: [Connect to a cluster](../howto/connect-to-a-cluster.md).
    """
    profile: Annotated[Profile | None, Takes.RELOAD] = None
    """The rules of the broker's operators that `fm-consumer check` applies besides its own:
    `"fedora"`, or `"none"`. Without this key: `"fedora"` if the host name of a broker ends with
    `fedoraproject.org`. An instance does not use it:
    [Use Fedora's broker](../howto/use-fedoras-broker.md).
    """
    slots: Annotated[StrictInt, Field(ge=1, le=64), Takes.RELOAD] = 1
    """The number of handlers that run at once, 1 to 64. The unit's `TasksMax=` has room for 64; if
    the system allows fewer threads, the start is refused. Each plain handler runs in its own
    thread; coroutine handlers run on the event loop. With more than 1 slot, several threads run
    the handler at once, and messages may overtake each other unless `ordering` forbids it.
    """
    read_ahead: Annotated[StrictInt, Field(ge=0, le=65535), Takes.RELOAD] = 100
    """The number of messages that wait in memory to keep all slots busy, 0 to 65535. A higher
    number takes more memory, and leaves fewer messages for the other consumers of the queue.
    """
    read_ahead_bytes: Annotated[
        Annotated[StrictInt, Field(ge=1 << 20, le=1 << 50)] | None, Takes.RELOAD
    ] = None
    """The number of bytes of messages that wait in memory, at least 1048576. Without this key: an
    eighth of the memory that the unit's `MemoryMax=` or the container allows, or 268435456 without
    such a limit. To stay below it, the broker sends fewer messages ahead, but no fewer than the
    slots take. A queue with a single active consumer keeps its number until the next subscription.
    """
    ordering: Annotated[Ordering, Takes.RESTART] = Ordering.NONE
    """The messages that may overtake each other; see below."""
    ordering_key: Annotated[
        Annotated[StrictStr, AfterValidator(_checked_source)] | None, Takes.RESTART
    ] = None
    """The place of the ordering key in a message; see below. Only with `ordering = "key"`."""
    # None: the form of the consumer decides; see `handler_limit`.
    handler_timeout: Annotated[Annotated[DurationOrEndless, Field(gt=0)] | None, Takes.RELOAD] = (
        None
    )
    """The time limit of one run of the handler, or `"infinity"` for no limit. It must be shorter
    than `ack_timeout`. Without this key, a callback as `fedora-messaging consume` runs it has no
    limit, and a `Consumer` has 10 minutes, or `ack_timeout` if that is shorter. At the limit, a
    coroutine handler is cancelled, and the attempt has failed. A plain function cannot be
    interrupted: the log reports it, and under systemd the watchdog restarts the instance.
    [`heartbeat()`](handlers.md#handlers-that-take-long) starts the time again. A stopping instance
    waits as long for its handlers, and as long for `teardown`; without a limit both have 10
    minutes from the beginning of the stop.
    """
    start_timeout: Annotated[Duration, Field(gt=0), Takes.RESTART] = 300.0
    """The time until the instance must consume from every queue. During this time it waits for a
    broker that cannot be reached, for the dependencies of its handler's `setup`, and for a state
    directory that another process uses or whose disk is full. Then it ends with exit code 75.
    systemd waits as long.
    """
    batch: Annotated[Batch | None, Takes.RELOAD] = None
    """The handler gets several messages at once; see below."""
    rate: Annotated[Rate | None, Takes.RELOAD] = None
    """The maximum number of messages that are handled in a length of time."""
    burst: Annotated[Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None, Takes.RELOAD] = None
    """The number of messages that may be handled at once after a pause, even if `rate` is lower; 1
    to 1000000. Without this key: as many as `rate` allows in a second. Only with `rate`.
    """
    store: Annotated[StoreKind, Takes.RESTART] = StoreKind.DISK
    """`"disk"`, or `"memory"` to keep no message on a disk; the instance then needs no state
    directory. See [without a store](#without-a-store).
    """
    quarantine_max_age: Annotated[Duration, Field(gt=0), Takes.RELOAD] = 90 * 86400.0
    """The age at which quarantined messages expire, counted from their last change. The instance
    writes them to `expired.jsonl` in the state directory, and then deletes them. It looks once an
    hour. For a stopped instance, `fm-consumer quarantine expire` does the same, and
    `fm-consumer-retention.timer` calls it once a day.
    """
    quarantine_max_bytes: Annotated[StrictInt, Field(ge=1, le=1 << 50), Takes.RELOAD] = 1 << 30
    """The maximum size of all messages in the store, with their properties and the tracebacks of
    their attempts, in bytes. Above it, the oldest quarantined messages expire. Deferred messages
    never expire.
    """
    thresholds: Annotated[Thresholds, Takes.RELOAD] = Thresholds()
    """The thresholds of the instance's condition; see below."""
    queue_policy: Annotated[QueuePolicy, Takes.RELOAD] = QueuePolicy()
    """The limits of the queues that a policy of the broker sets, which a client cannot read; see
    below. The status uses them to forecast a loss of messages.
    """
    health_interval: Annotated[Duration, Field(ge=1), Takes.RELOAD] = 30.0
    """The time between two calls of the consumer's own `health()`, at least 1 second."""
    health_timeout: Annotated[Duration, Field(gt=0), Takes.RELOAD] = 10.0
    """The time that `health()` may take. After that the instance is `unhealthy`."""
    traces: Annotated[StrictBool, Takes.RESTART] = False
    """Trace each run of the handler, its settle and the messages that it publishes, with
    OpenTelemetry: see [Trace messages](../howto/trace-messages.md). It takes the extra `otel`.
    """
    recovery: Annotated[Recovery, Takes.RELOAD] = Recovery()
    """The reaction to failing handlers: [Recovery](recovery.md) lists the keys."""
    publishing: Annotated[PublishingKind | None, Takes.RESTART] = None
    """The way of the messages that a handler publishes with `fedora_messaging.api`. With
    `"outbox"` they are stored before its message is acknowledged, and sent by the instance's own
    relay; if the handler fails, they are discarded. With `"direct"` they are sent at once, and the
    handler waits for the broker. Without this key: `"outbox"`, but `"direct"` in an instance that
    has neither a state directory nor an `outbox.database`.
    """
    outbox: Annotated[OutboxSettings, Takes.RESTART] = OutboxSettings()
    """The outbox of messages to publish; see below."""

    def handler_limit(self, usual: float) -> float:
        """Return the time limit of one run of the handler, in seconds.

        Args:
            usual: The limit without ``handler_timeout``, infinite for none. A finite one gives way
                to a shorter ``ack_timeout``.
        """
        if self.handler_timeout is not None:
            return self.handler_timeout
        return usual if math.isinf(usual) else min(usual, self.recovery.ack_timeout)

    @property
    def at_once(self) -> int:
        """The maximum number of messages in handlers."""
        return self.slots * (self.batch.size if self.batch else 1)

    @property
    def prefetch_count(self) -> int:
        """The prefetch count if the file has none."""
        return min(self.at_once + self.recovery.hold_slots + self.read_ahead, 65535)


# The queue that fedora-messaging declares if a configuration names none.
TRANSIENT_QUEUE: dict[str, Any] = {
    "durable": False,
    "auto_delete": True,
    "exclusive": True,
    "arguments": {},
}

_Port = Annotated[StrictInt, Field(ge=1, le=65535)]
_UInt16 = Annotated[StrictInt, Field(ge=0, le=65535)]
# The largest integer of an AMQP field table that every broker accepts.
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
    """The queue survives a restart of the broker."""
    auto_delete: StrictBool
    """The broker deletes the queue when its last consumer goes."""
    exclusive: StrictBool
    """Only this connection may use the queue, which ends with it."""
    arguments: Arguments
    """The queue's arguments, such as `x-queue-type`; `{}` for none."""
    passive: StrictBool | None = None
    """The same as `passive_declares`, for this queue alone. If it is not set, `passive_declares`
    decides.
    """


class Binding(Table):
    """The routing keys that bring messages of an exchange to a queue."""

    exchange: StrictStr
    """The exchange; it must exist."""
    routing_keys: Annotated[list[StrictStr], Field(max_length=10_000)]
    """Topics. `*` stands for one word, `#` for any number of words."""
    queue: StrictStr = ""
    """The queue; there must be a `[queues.NAME]` for it."""
    arguments: Arguments = Field(default={})
    """The binding's arguments."""


class Qos(Table):
    """The number of messages that the broker sends ahead, per queue.

    Attributes:
        prefetch_count: None if the file has none; see :attr:`Settings.prefetch_count`.
    """

    prefetch_size: Annotated[_UInt32, Takes.RESTART] = 0
    """The same in bytes. RabbitMQ accepts only 0."""
    prefetch_count: Annotated[_UInt16 | None, Takes.RELOAD] = None
    """The number of unsettled deliveries that the broker sends on each queue's channel; 0 to
    65535, 0 means no limit. Without this key: `slots` times the batch's `size` + `hold_slots` +
    `read_ahead`, which is 105 if none of these is set. If a queue has an `x-delivery-limit`, at
    most `slots` times `size` + that limit.
    """


class Tls(Table):
    """PEM files for ``amqps`` URLs."""

    ca_cert: Annotated[StrictStr | None, Takes.RECONNECT] = None
    """A PEM file with the CA certificates that vouch for the broker."""
    certfile: Annotated[StrictStr | None, Takes.RECONNECT] = None
    """A PEM file with this client's certificate."""
    keyfile: Annotated[StrictStr | None, Takes.RECONNECT] = None
    """A PEM file with the key of that certificate."""


class Monitoring(Table):
    """The HTTP server with ``/metrics``, ``/live`` and ``/ready``; without a port there is none."""

    address: StrictStr = ""
    """The address to listen on. Empty means `127.0.0.1`. For every address of the host, as a
    container may need it, write `"0.0.0.0"` or `"::"`.
    """
    port: _Port
    """The TCP port of the instance; 1 to 65535. Worker number *n* of it listens on this port
    + *n* - 1.
    """

    def place(self, worker: int = 1) -> tuple[str, int]:
        """Return the address and the port on which worker number *worker* listens."""
        return self.address or "127.0.0.1", self.port + worker - 1


class Settings(Table):
    """A whole configuration file, with defaults filled in."""

    amqp_url: Annotated[StrictStr, Takes.RESTART] = Field(repr=False)
    """The address of the broker, and the account: `amqp://USER:PASSWORD@HOST:PORT/VHOST`, or
    `amqps://` for TLS. The password may be `credential:NAME`. Special characters of user, password
    and vhost are percent-encoded: the vhost `/` is `%2F`. `connection_attempts` and `retry_delay`
    have no effect: [The life of an instance and its connection](../explanation/connection-life.md)
    describes the reconnects.
    """
    client_properties: Annotated[Arguments, Takes.RESTART] = Field(default={}, repr=False)
    """Names of the connection, for the broker's administrators."""
    publish_exchange: Annotated[StrictStr, Takes.RELOAD] = "amq.topic"
    """The exchange to which `fedora_messaging.api.publish` publishes."""
    topic_prefix: Annotated[StrictStr, Takes.RELOAD] = ""
    """A prefix that fedora-messaging adds to the topic of each message that a handler publishes.
    """
    publish_priority: Annotated[Annotated[StrictInt, Field(ge=0, le=255)] | None, Takes.RELOAD] = (
        None
    )
    """The priority of messages that a handler publishes."""
    passive_declares: Annotated[StrictBool, Takes.RESTART] = False
    """Check queues, and do not create them. Set it if the account may not create queues."""
    exchanges: Annotated[dict[str, dict[str, Any]], Takes.RELOAD] = Field(default={})
    """Accepted, as in every fedora-messaging file, and not used by a consumer."""
    queues: Annotated[dict[str, Queue], Field(max_length=1000), Takes.RESTART]
    """The queues to consume from, at least one. Default: one transient queue that the broker
    names.
    """
    bindings: Annotated[list[Binding], Field(max_length=10_000), Takes.RELOAD]
    """The rules that bring messages to the queues. Default: every topic (`#`) of `amq.topic` to
    the queue that the broker names.
    """
    qos: Qos = Qos()
    """The amount of messages that the broker sends ahead."""
    callback: Annotated[StrictStr | None, Takes.RESTART] = None
    """The handler, as `module:object`. Required, unless you name one on the command line."""
    monitoring: Annotated[Monitoring | None, Takes.RESTART] = None
    """An HTTP server that reports the state of the instance; empty means none."""
    consumer_config: Annotated[dict[str, Any], Takes.RELOAD] = Field(default={}, repr=False)
    """The author's settings."""
    tls: Tls = Field(default=Tls(), repr=False)
    """PEM files for `amqps://`."""
    log_config: Annotated[dict[str, Any] | None, Takes.RELOAD] = Field(default=None, repr=False)
    """Logging, in the form of Python's
    [`logging.config.dictConfig`](https://docs.python.org/3/library/logging.config.html#logging-config-dictschema).
    """

    @property
    def framework(self) -> Framework:
        """The framework's own settings. They were checked with the others."""
        return Framework.model_validate(self.consumer_config.get("framework", {}))

    @property
    def brokers(self) -> tuple[Address, ...]:
        """The addresses of the brokers in the order to try them; ``amqp_url`` is the first."""
        return addresses(self.amqp_url, self.framework.brokers)

    @property
    def prefetch_count(self) -> int:
        """The number of messages that the broker sends ahead, per queue."""
        written = self.qos.prefetch_count
        return self.framework.prefetch_count if written is None else written

    @property
    def is_fedoras(self) -> bool:
        """True if Fedora's rules apply: the file says so, or a broker has Fedora's host name."""
        if self.framework.profile is not None:
            return self.framework.profile is Profile.FEDORA
        return any(is_fedoras_host(address.name) for address in self.brokers)

    def queue_limits(self) -> dict[str, QueueLimits]:
        """Return the limits of the queues, by their names in the configuration.

        They are those of their arguments, of ``queue_policy`` and, on Fedora's broker, of Fedora.
        """
        policies = [self.framework.queue_policy]
        if self.is_fedoras:
            policies.append(fedoras_policy(self.amqp_url))
        return {name: limits_of(queue.arguments, policies) for name, queue in self.queues.items()}

    def is_passive(self, queue: Queue) -> bool:
        """Return true if the instance does not create *queue*, which must exist."""
        return self.passive_declares if queue.passive is None else queue.passive

    def bindings_of(self, queue: str) -> list[Binding]:
        """Return the bindings of the queue with the name *queue* in the configuration."""
        return [binding for binding in self.bindings if binding.queue == queue]


_FEDORAS_DOMAIN = "fedoraproject.org"


def is_fedoras_host(name: str) -> bool:
    """Return true if *name* is the name of a host of Fedora's."""
    return f".{name.lower()}".endswith(f".{_FEDORAS_DOMAIN}")


# The configuration of the instance NAME is the file NAME.toml there.
CONFIGURATION_DIRECTORY = Path("/etc/fedora-messaging")
# systemd makes the user name `fm-NAME` of it, and refuses any other form (systemd.exec(5),
# "User/Group Name Syntax"): letters, digits, "_" and "-", 31 characters at most.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,28}", re.ASCII)


def instance_name_problem(name: str) -> Problem | None:
    """Return the problem with *name* as the NAME in ``fm-consumer@NAME``, or None."""
    if INSTANCE_NAME.fullmatch(name):
        return None
    return Problem(
        "",
        f"{name!r} is no instance name",
        'use 1 to 28 of the characters a-z, A-Z, 0-9, "_" and "-" '
        "(the service runs as the user fm-NAME), or --conf FILE for a file anywhere",
    )


# https://www.rabbitmq.com/docs/consumers#single-active-consumer
SINGLE_ACTIVE = "x-single-active-consumer"


def is_single_active(queue: Queue) -> bool:
    """Return true if the broker gives the messages of *queue* to one consumer at a time."""
    return queue.arguments.get(SINGLE_ACTIVE) is True
