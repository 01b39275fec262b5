# SPDX-License-Identifier: GPL-2.0-or-later
"""``[consumer_config.framework]``: this framework's own settings.

The configuration file as fedora-messaging defines it.

What every table of the configuration has in common.

Which names an instance may have.

Where the brokers are: the one of ``amqp_url``, and those of ``brokers``.

All are members of one cluster, or addresses of one broker. So the user, the password, the virtual
host, the parameters of the URL and ``[tls]`` are those of ``amqp_url``, for each of them.

What the arguments of a queue mean for those who consume from it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from consumer_framework.core.errors import Problem
from consumer_framework.core.limits import Rate
from consumer_framework.core.ordering import source_of
from consumer_framework.core.recovery import OnExhausted, OnInvalid, Then
from consumer_framework.core.text import Duration, DurationOrEndless

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Table(BaseModel):
    """A frozen table that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_PORTS = {"amqp": 5672, "amqps": 5671}
# Where pika connects to for a URL without a host.
_LOCALHOST = "localhost"


@dataclass(frozen=True, slots=True)
class Address:
    """One broker.

    Attributes:
        name: A DNS name, or an IPv4 or IPv6 address.
        port: The TCP port.
    """

    name: str
    port: int

    def __str__(self) -> str:
        """``HOST:PORT``; an IPv6 address is in brackets."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


def _checked_brokers(text: str) -> str:
    """Let through what :func:`addresses` understands."""
    try:
        parts = _split(text)
        is_right = bool(parts.hostname) and parts.port != 0 and parts.scheme in {"", *_PORTS}
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError('must be "HOST", "HOST:PORT" or an AMQP URL')
    return text


Broker = Annotated[StrictStr, AfterValidator(_checked_brokers)]


def addresses(amqp_url: str, brokers: Sequence[str] = ()) -> tuple[Address, ...]:
    """Return where brokers are, in the order to try them; each one once.

    Args:
        amqp_url: A valid one.
        brokers: ``HOST``, ``HOST:PORT`` or an AMQP URL each. Without a port it is that of
            ``amqp_url``; in a URL, that of its scheme.
    """
    first = urlsplit(amqp_url)
    port = first.port or _PORTS.get(first.scheme, _PORTS["amqp"])
    found = [Address(unquote(first.hostname or _LOCALHOST), port)]
    others = map(_split, brokers)
    found += [Address(p.hostname or "", p.port or _PORTS.get(p.scheme, port)) for p in others]
    return tuple(dict.fromkeys(found))


def broker_problems(amqp_url: str, brokers: Sequence[str], path: str) -> Iterator[Problem]:
    """Say which entries do not go together with ``amqp_url``; no text of them is repeated.

    Args:
        amqp_url: A valid one.
        brokers: As for :func:`addresses`.
        path: The TOML path of the list.
    """
    first = urlsplit(amqp_url)
    for index, parts in enumerate(map(_split, brokers)):
        if parts.scheme and parts.scheme != first.scheme:
            what = f"is {parts.scheme}:// where amqp_url is {first.scheme}://"
            yield Problem(f"{path}[{index}]", what, "use the same for all brokers")
        elif _differs(parts, first):
            what = "has another user, password or virtual host than amqp_url"
            cure = "write HOST:PORT; all brokers are connected to with those of amqp_url"
            yield Problem(f"{path}[{index}]", what, cure)


def _differs(parts: SplitResult, first: SplitResult) -> bool:
    has_login = "@" in parts.netloc
    other_login = has_login and _login(parts) != _login(first)
    has_vhost = parts.path not in {"", "/"}
    return other_login or (has_vhost and unquote(parts.path[1:]) != unquote(first.path[1:]))


def _login(parts: SplitResult) -> tuple[str, str]:
    return unquote(parts.username or ""), unquote(parts.password or "")


def _split(text: str) -> SplitResult:
    if "://" in text:
        return urlsplit(text)
    # An IPv6 address has colons itself; in brackets it may have a port.
    bare = text.count(":") > 1 and not text.startswith("[")
    return urlsplit(f"//[{text}]" if bare else f"//{text}")


class BreakerSettings(Table):
    """When a dependency counts as broken, and how often it is looked at then."""

    consecutive: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 5
    probe: Annotated[tuple[Duration, ...], Field(min_length=1, max_length=100)] = (30.0, 300.0)


class RuleSettings(Table):
    """What becomes of a message whose handler raised one of some exceptions.

    In a file, exceptions are dotted names; a class may name them itself.
    """

    exceptions: Annotated[
        tuple[str | type[BaseException], ...], Field(min_length=1, max_length=1000)
    ]
    then: Then


class Recovery(Table):
    """What happens when a handler fails; also the ``recovery`` attribute of a :class:`.Consumer`.

    Args:
        immediate: How many retries follow at once.
        delays: How long to wait before each further retry, with a fifth more or less by chance.
        hold_slots: How many messages may wait in memory, unacknowledged.
        ack_timeout: The broker's ``consumer_timeout``; a message is held for half of it.
        on_exhausted: What follows the last attempt.
        on_invalid: What becomes of bytes that are no valid message.
        crash_attempts: How many deaths of the process a message may be in the handler for.
        breaker: When a dependency counts as broken.
        rules: For exceptions that are no signals; the first that matches decides.

    Lengths of time are text such as ``"10s"`` and ``"5m"``, or seconds.
    """

    immediate: Annotated[StrictInt, Field(ge=0, le=100)] = 1
    delays: Annotated[tuple[Duration, ...], Field(max_length=100)] = (10.0, 60.0, 300.0)
    hold_slots: Annotated[StrictInt, Field(ge=0, le=65535)] = 4
    ack_timeout: Annotated[Duration, Field(gt=0)] = 1800.0
    on_exhausted: OnExhausted = OnExhausted.QUARANTINE
    on_invalid: OnInvalid = OnInvalid.QUARANTINE
    crash_attempts: Annotated[StrictInt, Field(ge=1, le=1000)] = 2
    breaker: BreakerSettings = BreakerSettings()
    rules: Annotated[tuple[RuleSettings, ...], Field(max_length=1000)] = ()

    if TYPE_CHECKING:
        # A type checker would ask for the parsed values; authors write what a file says.
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
        """These settings with what *other* says itself, and its rules before these."""
        said = {name: getattr(other, name) for name in other.model_fields_set}
        said["rules"] = (*other.rules, *self.rules)
        return self.model_copy(update=said)


class Ordering(Enum):
    """Which messages may overtake each other."""

    NONE = "none"
    KEY = "key"
    STRICT = "strict"


class StoreKind(Enum):
    """Where messages are that the broker is told to forget."""

    DISK = "disk"
    MEMORY = "memory"


class Batch(Table):
    """How many messages a batch handler gets at once, and how long it waits for them.

    Args:
        size: Messages, at the most.
        seconds: How long the first one waits for the others.
    """

    size: Annotated[StrictInt, Field(ge=1, le=10_000)] = 100
    seconds: Annotated[Duration, Field(gt=0)] = 1.0


def _checked_source(text: str) -> str:
    source_of(text)
    return text


class Framework(Table):
    """``[consumer_config.framework]``: this framework's own settings."""

    brokers: Annotated[tuple[Broker, ...], Field(max_length=100)] = ()
    slots: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    read_ahead: Annotated[StrictInt, Field(ge=0, le=65535)] = 100
    read_ahead_bytes: Annotated[StrictInt, Field(ge=1 << 20, le=1 << 50)] | None = None
    ordering: Ordering = Ordering.NONE
    ordering_key: Annotated[StrictStr, AfterValidator(_checked_source)] | None = None
    # None for what is usual for the form of the consumer: see `handler_limit`.
    handler_timeout: Annotated[DurationOrEndless, Field(gt=0)] | None = None
    start_timeout: Annotated[Duration, Field(gt=0)] = 300.0
    batch: Batch | None = None
    rate: Rate | None = None
    burst: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    store: StoreKind = StoreKind.DISK
    quarantine_max_age: Annotated[Duration, Field(gt=0)] = 90 * 86400.0
    quarantine_max_bytes: Annotated[StrictInt, Field(ge=1, le=1 << 50)] = 1 << 30
    recovery: Recovery = Recovery()

    def handler_limit(self, usual: float) -> float:
        """Seconds that one run of the handler may take.

        Args:
            usual: What counts where nothing is said: infinite for no limit. A finite one gives
                way to a shorter ``ack_timeout``.
        """
        if self.handler_timeout is not None:
            return self.handler_timeout
        return usual if math.isinf(usual) else min(usual, self.recovery.ack_timeout)

    @property
    def at_once(self) -> int:
        """How many messages are in handlers at the most."""
        return self.slots * (self.batch.size if self.batch else 1)

    @property
    def prefetch_count(self) -> int:
        """How many messages the broker sends ahead, where the file does not say."""
        return min(self.at_once + self.recovery.hold_slots + self.read_ahead, 65535)


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


# systemd makes the user name `fm-NAME` of it, and refuses what is no user name (systemd.exec(5),
# "User/Group Name Syntax"): letters, digits, "_" and "-", 31 characters at most.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,28}", re.ASCII)


def instance_name_problem(name: str) -> Problem | None:
    """Say what is wrong with *name* as the NAME in ``fm-consumer@NAME``, if anything is."""
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
    """Whether the broker gives its messages to one consumer, and the next when that is gone."""
    return queue.arguments.get(SINGLE_ACTIVE) is True
