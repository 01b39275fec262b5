# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks the declared queues and bindings for messages that never come, or get lost.

The arguments are RabbitMQ's optional queue arguments (rabbitmq.com/docs/queues). RabbitMQ accepts a
binding that matches no topic without a word: its topic exchange compares a key word by word
(rabbitmq.com/tutorials/tutorial-five-python).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from consumer_framework.core.errors import ExitCode, Problem
from consumer_framework.core.limits import DEFAULT_LIMIT, DEFAULT_SINCE, LIMIT
from consumer_framework.core.text import duration_text
from consumer_framework.core.topics import MANY, ONE, pattern_fault
from consumer_framework.operate.bindings import exchange_type
from consumer_framework.settings import toml_path
from consumer_framework.settings.model import SINGLE_ACTIVE, is_single_active

from .findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from consumer_framework.settings import Binding, Framework, Queue, Settings

    from .findings import Finding

    Version: TypeAlias = tuple[int, ...]

_PATH = "qos.prefetch_count"


def flow_findings(count: int | None, framework: Framework) -> Iterator[Finding]:
    """Check that the broker sends as many messages ahead as slots and holds need.

    Args:
        count: The ``prefetch_count`` of the file; None without it.
        framework: The settings in force, those of the consumer's class included.
    """
    if count is None:
        return
    busy, hold_slots = framework.at_once, framework.recovery.hold_slots
    if count == 0:
        what = "the broker sends everything that the queue has, whatever memory that takes"
        yield warning(_PATH, what, "remove this key, and it fits the slots")
    elif count < busy:
        what = f"slots take {busy} messages at once, and the broker sends {count}: some idle"
        yield warning(_PATH, what, f"set it to {busy} or more, or remove this key")
    elif count < busy + hold_slots:
        what = (
            f"{count - busy} of hold_slots = {hold_slots} can be used; "
            "what must wait for another attempt is written to the disk instead"
        )
        yield info(_PATH, what, "remove this key, and it fits the slots")


def binding_findings(settings: Settings) -> Iterator[Finding]:
    """Find bindings that bring no message, and queues without a binding."""
    for index, binding in enumerate(settings.bindings):
        place = f"bindings[{index}]"
        kind = exchange_type(settings, binding.exchange)
        if not binding.exchange:
            what = "is the default exchange, and the broker lets nobody bind to it"
            cure = 'name another one, such as "amq.topic"'
            yield error(Problem(f"{place}.exchange", what, cure), ExitCode.BAD_DECLARATION)
        else:
            yield from _routing_key_findings(f"{place}.routing_keys", binding, kind)
    bound = {binding.queue for binding in settings.bindings if binding.routing_keys}
    for name, queue in settings.queues.items():
        if name not in bound:
            what = "no binding of this file brings messages to the queue"
            cure = f'add [[bindings]] with queue = "{name}", unless others bind it'
            yield (info if settings.is_passive(queue) else warning)(
                toml_path("queues", (name,)), what, cure
            )


def _routing_key_findings(place: str, binding: Binding, kind: str) -> Iterator[Finding]:
    if not binding.routing_keys:
        yield warning(place, "is empty: the binding is never made", 'write ["#"] for every topic')
    look = {"topic": pattern_fault, "direct": _direct_problem}.get(kind)
    for index, key in enumerate(binding.routing_keys if look else ()):
        assert look is not None  # noqa: S101 -- the line above
        if found := look(key):
            yield warning(f"{place}[{index}]", f'"{key}" {found[0]}', found[1])


def _direct_problem(key: str) -> tuple[str, str] | None:
    if ONE in key or MANY in key:
        what = 'matches no ordinary topic: for a direct exchange, "*" and "#" stand for themselves'
        return what, "bind to a topic exchange, or write each topic"
    return None


_DEAD_LETTER_EXCHANGE = "x-dead-letter-exchange"
_OTHER_QUEUE = "use a queue without it, of another name (arguments cannot be changed)"


def queue_findings(
    name: str,
    queue: Queue,
    ack_timeout: float,
    version: Version | None = None,
    *,
    lasting: str = "",
) -> Iterator[Finding]:
    """Find the reasons why a queue may lose messages, or be refused.

    Args:
        name: Its name in the configuration.
        queue: Its table; ``passive`` is the value in force.
        ack_timeout: ``recovery.ack_timeout``, in seconds.
        version: The broker's version, None if it is unknown.
        lasting: The way to a queue that lasts, if this broker gives the account none.
    """
    yield from _lifetime_findings(name, queue, lasting)
    yield from _transient_findings(toml_path("queues", (name,)), queue, version)
    arguments = queue.arguments
    place = toml_path("queues", (name, "arguments"))
    yield from _length_findings(place, arguments)
    yield from _age_findings(place, arguments)
    yield from _delivery_limit_findings(place, arguments, version)
    yield from _deadlock_findings(place, queue, version)
    yield from _consumer_timeout_findings(place, arguments, ack_timeout)


def _lifetime_findings(name: str, queue: Queue, lasting: str) -> Iterator[Finding]:
    # One finding is enough for a queue that ends: the first end.
    place = toml_path("queues", (name,))
    if queue.exclusive or queue.auto_delete:
        key = "exclusive" if queue.exclusive else "auto_delete"
        what = "the queue goes with its consumer: what is sent while the instance is down is lost"
        cure = f"set {key} = false and durable = true, with a queue of another name"
        if not name:
            cure = "declare a durable [queues.NAME], and bind that"
        yield warning(f"{place}.{key}", what, lasting or cure)
    elif not queue.durable:
        what = "the queue and its messages are lost when the broker restarts"
        cure = "set it to true, with a queue of another name"
        yield warning(f"{place}.durable", what, lasting or cure)


# RabbitMQ 4.3 refuses deprecated features unless its administrators permit them, and its quorum
# queues have consumer timeouts of their own (release notes of RabbitMQ 4.3.0).
_RABBITMQ_4_3 = (4, 3)


def _transient_findings(place: str, queue: Queue, version: Version | None) -> Iterator[Finding]:
    if queue.durable or queue.exclusive or (version or _RABBITMQ_4_3) < _RABBITMQ_4_3:
        return
    what = "RabbitMQ 4.3 refuses a queue that is neither durable nor exclusive"
    cure = (
        "set durable = true, or exclusive = true; or let the broker's administrators set "
        "deprecated_features.permit.transient_nonexcl_queues"
    )
    if version is None or queue.passive:
        yield warning(f"{place}.durable", what, cure)
    else:
        yield error(Problem(f"{place}.durable", what, cure), ExitCode.BAD_DECLARATION)


def _deadlock_findings(place: str, queue: Queue, version: Version | None) -> Iterator[Finding]:
    is_old = (version or _RABBITMQ_4_3) < _RABBITMQ_4_3
    if is_old or not (_is_quorum(queue.arguments) and is_single_active(queue)):
        return
    what = (
        "with RabbitMQ 4.3, a quorum queue may give no message to anybody after the consumer "
        "timeout of its single active consumer"
    )
    cure = (
        "use a classic queue, or have the broker's consumer_timeout longer than every handler, and "
        "set handler_timeout"
    )
    yield warning(f"{place}.{SINGLE_ACTIVE}", what, cure)


def _removal(arguments: Mapping[str, Any]) -> str:
    # The verb for a message that the broker takes off a queue.
    exchange = arguments.get(_DEAD_LETTER_EXCHANGE)
    return f'moves to the exchange "{exchange}"' if exchange is not None else "drops"


def _keeping_cure(arguments: Mapping[str, Any]) -> str:
    # The cure that keeps such messages.
    policy = ", or let a policy give this one a dead-letter exchange"
    return _OTHER_QUEUE if _DEAD_LETTER_EXCHANGE in arguments else _OTHER_QUEUE + policy


def _length_findings(place: str, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    refuses = str(arguments.get("x-overflow", "")).startswith("reject-publish")
    then = "refuses what is sent to it" if refuses else f"{_removal(arguments)} the oldest ones"
    cure = _OTHER_QUEUE if refuses else _keeping_cure(arguments)
    for key, unit in (("x-max-length", "messages"), ("x-max-length-bytes", "bytes")):
        if key in arguments:
            what = f"when {_count_text(arguments[key])} {unit} wait in the queue, the broker {then}"
            yield warning(f"{place}.{key}", what, cure)


def _age_findings(place: str, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    if "x-message-ttl" in arguments:
        waited = _age_text(arguments["x-message-ttl"])
        what = f"the broker {_removal(arguments)} messages that have waited for {waited}"
        yield warning(f"{place}.x-message-ttl", what, _keeping_cure(arguments))
    if "x-expires" in arguments:
        idle = _age_text(arguments["x-expires"])
        what = f"the queue and its messages are deleted when nobody has consumed for {idle}"
        yield warning(f"{place}.x-expires", what, _OTHER_QUEUE)


def _delivery_limit_findings(
    place: str, arguments: Mapping[str, Any], version: Version | None
) -> Iterator[Finding]:
    limit = arguments.get(LIMIT)
    back = "each crash and each lost connection brings back what was sent ahead"
    if isinstance(limit, int) and limit >= 0:
        message = f"a message that came back more than {limit} times"
        what = f"the broker {_removal(arguments)} {message}"
        yield warning(f"{place}.{LIMIT}", f"{what}; {back}", _keeping_cure(arguments))
    elif limit is None and _is_quorum(arguments) and (version or DEFAULT_SINCE) >= DEFAULT_SINCE:
        what = (
            f"RabbitMQ 4 {_removal(arguments)} a message of a quorum queue that came back "
            f"{DEFAULT_LIMIT} times; {back}"
        )
        cure = "let a policy give the queue a dead-letter exchange, or a delivery-limit of -1"
        if _DEAD_LETTER_EXCHANGE in arguments:
            cure = "let a policy give the queue a delivery-limit of -1"
        yield warning(f"{place}.x-queue-type", what, cure)


def _is_quorum(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("x-queue-type") == "quorum"


def _consumer_timeout_findings(
    place: str, arguments: Mapping[str, Any], ack_timeout: float
) -> Iterator[Finding]:
    key = "x-consumer-timeout"
    value = arguments.get(key)
    if _is_number(value) and value / 1000 < ack_timeout:
        what = (
            f"the broker takes messages back after {_age_text(value)}, sooner than "
            f"recovery.ack_timeout ({duration_text(ack_timeout)}) says"
        )
        yield warning(f"{place}.{key}", what, f'set ack_timeout = "{_age_text(value)}"')


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count_text(value: Any) -> str:
    return f"{value:,}" if _is_number(value) else "so many"


def _age_text(milliseconds: Any) -> str:
    return duration_text(milliseconds / 1000) if _is_number(milliseconds) else "so long"
