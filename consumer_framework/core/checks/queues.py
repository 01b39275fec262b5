# SPDX-License-Identifier: GPL-2.0-or-later
"""Queues that lose messages: by what they are, and by their arguments.

The arguments are RabbitMQ's optional queue arguments (rabbitmq.com/docs/queues).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from consumer_framework.core.delivery_limit import DEFAULT_LIMIT, DEFAULT_SINCE, LIMIT
from consumer_framework.core.durations import text as duration
from consumer_framework.core.findings import warning
from consumer_framework.core.settings import toml_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from consumer_framework.core.findings import Finding
    from consumer_framework.core.settings import Queue

    Version: TypeAlias = tuple[int, ...]

_DLX = "x-dead-letter-exchange"
_OTHER_QUEUE = "use a queue without it, of another name (arguments cannot be changed)"


def queue_findings(
    name: str, queue: Queue, ack_timeout: float, version: Version | None = None
) -> Iterator[Finding]:
    """Say what a queue may lose.

    Args:
        name: What the configuration calls it.
        queue: Its table.
        ack_timeout: ``recovery.ack_timeout``, in seconds.
        version: The broker's, where it is known.
    """
    yield from _life(name, queue)
    arguments = queue.arguments
    place = toml_path("queues", (name, "arguments"))
    yield from _lengths(place, arguments)
    yield from _ages(place, arguments)
    yield from _deliveries(place, arguments, version)
    yield from _consumer_timeout(place, arguments, ack_timeout)


def _life(name: str, queue: Queue) -> Iterator[Finding]:
    """One finding for a queue that is not there for ever: what ends it first says enough."""
    place = toml_path("queues", (name,))
    if queue.exclusive or queue.auto_delete:
        key = "exclusive" if queue.exclusive else "auto_delete"
        what = "the queue goes with its consumer: what is sent while the instance is down is lost"
        cure = f"set {key} = false and durable = true, with a queue of another name"
        if not name:
            cure = "declare a durable [queues.NAME], and bind that"
        yield warning(f"{place}.{key}", what, cure)
    elif not queue.durable:
        what = "the queue and its messages are lost when the broker restarts"
        yield warning(f"{place}.durable", what, "set it to true, with a queue of another name")


def _goes(arguments: Mapping[str, Any]) -> str:
    """What the broker does with a message that it takes off a queue."""
    exchange = arguments.get(_DLX)
    return f'moves to the exchange "{exchange}"' if exchange is not None else "drops"


def _keep(arguments: Mapping[str, Any]) -> str:
    """How to keep such messages."""
    policy = ", or let a policy give this one a dead-letter exchange"
    return _OTHER_QUEUE if _DLX in arguments else _OTHER_QUEUE + policy


def _lengths(place: str, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    refuses = str(arguments.get("x-overflow", "")).startswith("reject-publish")
    then = "refuses what is sent to it" if refuses else f"{_goes(arguments)} the oldest ones"
    cure = _OTHER_QUEUE if refuses else _keep(arguments)
    for key, unit in (("x-max-length", "messages"), ("x-max-length-bytes", "bytes")):
        if key in arguments:
            what = f"when {_count(arguments[key])} {unit} wait in the queue, the broker {then}"
            yield warning(f"{place}.{key}", what, cure)


def _ages(place: str, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    if "x-message-ttl" in arguments:
        waited = _age(arguments["x-message-ttl"])
        what = f"the broker {_goes(arguments)} messages that have waited for {waited}"
        yield warning(f"{place}.x-message-ttl", what, _keep(arguments))
    if "x-expires" in arguments:
        idle = _age(arguments["x-expires"])
        what = f"the queue and its messages are deleted when nobody has consumed for {idle}"
        yield warning(f"{place}.x-expires", what, _OTHER_QUEUE)


def _deliveries(
    place: str, arguments: Mapping[str, Any], version: Version | None
) -> Iterator[Finding]:
    limit = arguments.get(LIMIT)
    back = "each crash and each lost connection brings back what was sent ahead"
    if isinstance(limit, int) and limit >= 0:
        what = f"the broker {_goes(arguments)} a message that came back more than {limit} times"
        yield warning(f"{place}.{LIMIT}", f"{what}; {back}", _keep(arguments))
    elif limit is None and _is_quorum(arguments) and (version or DEFAULT_SINCE) >= DEFAULT_SINCE:
        what = (
            f"RabbitMQ 4 {_goes(arguments)} a message of a quorum queue that came back "
            f"{DEFAULT_LIMIT} times; {back}"
        )
        cure = "let a policy give the queue a dead-letter exchange, or a delivery-limit of -1"
        if _DLX in arguments:
            cure = "let a policy give the queue a delivery-limit of -1"
        yield warning(f"{place}.x-queue-type", what, cure)


def _is_quorum(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("x-queue-type") == "quorum"


def _consumer_timeout(
    place: str, arguments: Mapping[str, Any], ack_timeout: float
) -> Iterator[Finding]:
    key = "x-consumer-timeout"
    value = arguments.get(key)
    if _is_number(value) and value / 1000 < ack_timeout:
        what = (
            f"the broker takes messages back after {_age(value)}, sooner than "
            f"recovery.ack_timeout ({duration(ack_timeout)}) says"
        )
        yield warning(f"{place}.{key}", what, f'set ack_timeout = "{_age(value)}"')


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> str:
    return f"{value:,}" if _is_number(value) else "so many"


def _age(milliseconds: Any) -> str:
    return duration(milliseconds / 1000) if _is_number(milliseconds) else "so long"
