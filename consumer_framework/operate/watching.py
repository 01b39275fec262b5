# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches topics over reconnects, and makes documents of deliveries to select and to show them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedora_messaging.message import Message as Base

from consumer_framework.adapters.amqp.inspection import UnreachableError
from consumer_framework.adapters.amqp.watching import MOST_LENT, Loan, LostError, Watch
from consumer_framework.adapters.codec import decode
from consumer_framework.core.delivery import codec_of, readable
from consumer_framework.core.errors import ConfigurationError, Fault, Problem
from consumer_framework.core.text import printable
from consumer_framework.settings import CONFIGURATION_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.settings import Address, Binding

T = TypeVar("T")

# Fedora's public broker, as the file fedora.toml of fedora-messaging has it.
FEDORA_URL = "amqps://fedora:@rabbitmq.fedoraproject.org/%2Fpublic_pubsub"
_UPSTREAM = "https://raw.githubusercontent.com/fedora-infra/fedora-messaging/stable/configs"
_CERTIFICATES = {
    "ca_cert": "cacert.pem",
    "certfile": "fedora-cert.pem",
    "keyfile": "fedora-key.pem",
}
# Seconds between two attempts to connect again: the first, and the most.
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0
# Seconds in which a broker that accepted us before may refuse: it restarts.
_PATIENCE = 300.0


def fedora_values(url: str = FEDORA_URL) -> dict[str, Any]:
    """Return the configuration for Fedora's public broker, with the certificates of this machine.

    They are those of the package fedora-messaging, in /etc/fedora-messaging, or copies in
    $XDG_CONFIG_HOME/fedora-messaging.

    Args:
        url: The URL of another broker that takes the same certificates.

    Raises:
        ConfigurationError: They are not there.
    """
    directories = (_own_directory(), CONFIGURATION_DIRECTORY)
    for directory in directories:
        files = {key: directory / name for key, name in _CERTIFICATES.items()}
        if all(file.is_file() for file in files.values()):
            return {"amqp_url": url, "tls": {key: str(file) for key, file in files.items()}}
    raise ConfigurationError(_no_certificates(directories), source="")


def _own_directory() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "fedora-messaging"


def _no_certificates(directories: Sequence[Path]) -> Problem:
    own, system = directories
    names = ",".join(_CERTIFICATES.values())
    what = f"the public certificates of Fedora's broker are neither in {own} nor in {system}"
    fetch = f"curl --create-dirs --output-dir {own} --remote-name-all '{_UPSTREAM}/{{{names}}}'"
    return Problem("", what, f"dnf install fedora-messaging, or: {fetch}")


@dataclass(frozen=True, slots=True)
class Lost:
    """There is no connection.

    Attributes:
        reason: The reason.
        retry_in: The seconds until the next attempt.
    """

    reason: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection.

    Attributes:
        host: The broker as ``HOST:PORT``.
        gap: The seconds since the last connection was lost, whose messages are missing; None for
            the first connection.
    """

    host: str
    gap: float | None


def watch(
    addresses: Sequence[Address],
    bindings: Sequence[Binding],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    connect: Callable[[Address, Sequence[Binding]], Watch] = Watch,
) -> Generator[Delivery | Lost | Connected | None, None, None]:
    """Yield deliveries, and the states of the connection, without end; None after each moment.

    Closing the iterator closes the connection.

    Args:
        addresses: The brokers in the order to try them.
        bindings: The exchanges and keys to watch.
        sleep: Waits so many seconds.
        clock: Returns monotonic seconds.
        connect: Makes a connection.

    Raises:
        Fault: No broker takes the first connection, or one refuses to be watched.
    """
    lost_at: float | None = None
    delay = _FIRST_DELAY
    while True:
        try:
            with _first(addresses, lambda address: connect(address, bindings)) as current:
                yield Connected(current.host, None if lost_at is None else clock() - lost_at)
                lost_at, delay = None, _FIRST_DELAY
                while True:
                    yield from current.wait()
                    yield None
        except (LostError, Fault) as error:
            now = clock()
            if isinstance(error, Fault) and (lost_at is None or _is_final(error, now - lost_at)):
                raise
            lost_at = now if lost_at is None else lost_at
            yield Lost(str(error), delay)
            sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)


def _is_final(fault: Fault, since: float) -> bool:
    return not isinstance(fault, UnreachableError) and since > _PATIENCE


def lend(addresses: Sequence[Address], queue: str, most: int) -> Loan:
    """Borrow the messages that wait in a queue, at the first broker that answers.

    Args:
        addresses: The brokers in the order to try them.
        queue: The name of the queue.
        most: So many messages at most.

    Raises:
        Fault: No broker answers, or one refuses the queue; or the queue cannot lend messages.
    """
    return _first(addresses, lambda address: Loan(address, queue, min(most, MOST_LENT)))


def _first(addresses: Sequence[Address], connect: Callable[[Address], T]) -> T:
    faults: list[UnreachableError] = []
    for address in addresses:
        try:
            return connect(address)
        except UnreachableError as error:
            faults.append(error)
    reasons = "; ".join([*map(str, faults), "start it, or name another broker"])
    raise UnreachableError(faults[0].exit_code, reasons)


@dataclass(frozen=True, slots=True)
class View:
    """A delivery, as people and conditions see it.

    Attributes:
        delivery: The delivery.
        topic: Its topic as text.
        message: The message; None if its bytes make none.
        fault: The reason why there is no valid message; "" if there is one.
        body: Its body as JSON has it; None if it is no JSON.
        schema: The name of the class that it asks for; "" for none.
        is_known: True if that class is installed.
    """

    delivery: Delivery
    topic: str
    message: Base | None
    fault: str
    body: Any
    schema: str
    is_known: bool

    @classmethod
    def of(cls, delivery: Delivery) -> View:
        """Decode and validate *delivery*."""
        topic = readable(delivery.routing_key)
        headers = delivery.properties.headers or {}
        schema = headers.get("fedora_messaging_schema", "")
        schema = schema if isinstance(schema, str) else ""
        try:
            message = decode(delivery)
        except Exception as error:  # noqa: BLE001 -- schema classes are anybody's code
            body = _json(delivery)
            return cls(delivery, topic, None, _reason(error), body, schema, is_known=True)
        known = schema in {"", "base.message"} or type(message) is not Base
        return cls(delivery, topic, message, "", message.body, schema, known)

    @property
    def summary(self) -> str:
        """The summary of the message's class, or its body, in one line."""
        if self.message is None:
            return self.fault
        try:
            summary = str(self.message.summary)
        except Exception as error:  # noqa: BLE001 -- as above
            return f"(its class cannot sum it up: {_reason(error)})"
        if summary and summary != self.message.topic:
            return printable(" ".join(summary.split()))
        return json.dumps(self.body, ensure_ascii=False, default=str)

    @property
    def severity(self) -> int:
        """The severity as a number of :mod:`logging`; 20 if there is none."""
        headers = self.delivery.properties.headers or {}
        found = headers.get("fedora_messaging_severity", 20)
        return found if isinstance(found, int) else 20

    def document(self) -> dict[str, Any]:
        """Return the values that conditions are about."""
        found = {
            "topic": self.topic,
            "id": self.delivery.message_id,
            "queue": self.delivery.queue,
            "exchange": self.delivery.exchange,
            "severity": self.severity,
            "headers": self.delivery.properties.headers or {},
        }
        return found if self.body is None else {**found, "body": self.body}


def _json(delivery: Delivery) -> Any:
    encoding = getattr(delivery.properties, "content_encoding", None) or "utf-8"
    try:
        return json.loads(delivery.body.decode(codec_of(encoding)))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    found = getattr(error, "summary", None)
    text = found if isinstance(found, str) and found else str(error)
    return printable(" ".join(text.split())) or type(error).__name__
