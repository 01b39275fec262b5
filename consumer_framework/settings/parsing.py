# SPDX-License-Identifier: GPL-2.0-or-later
"""Check a whole configuration, and collect every error with its TOML path.

:func:`parse` checks each setting by its declaration, then the settings that contradict each other
(:func:`conflicts`). :func:`override` applies the options of the command line before that.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pydantic

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.recovery import OnExhausted
from consumer_framework.core.text import duration_text

from .brokers import broker_problems
from .model import (
    TRANSIENT_QUEUE,
    Framework,
    Ordering,
    PublishingKind,
    Settings,
    StoreKind,
)
from .outbox import OutboxSettings
from .problems import from_pydantic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .model import Recovery

# The TOML path of the framework's own settings.
FRAMEWORK = "consumer_config.framework"

# Messages in handlers. Each takes a task, a record of the flight recorder, and its own memory.
MOST_AT_ONCE = 10_000


def conflicts(framework: Framework) -> Iterator[Problem]:
    """Find the framework's settings that contradict each other."""
    if framework.ordering_key is not None and framework.ordering is not Ordering.KEY:
        cure = 'set ordering = "key", or remove this key'
        what = f'has no effect with ordering = "{framework.ordering.value}"'
        yield Problem(f"{FRAMEWORK}.ordering_key", what, cure)
    if framework.burst is not None and framework.rate is None:
        yield Problem(f"{FRAMEWORK}.burst", "has no effect without rate", "set rate, or remove it")
    if framework.batch is not None and framework.ordering is Ordering.STRICT:
        what = 'with ordering = "strict" one message is handled at a time'
        yield Problem(f"{FRAMEWORK}.batch", what, "remove it, or order by key")
    if framework.batch is not None and framework.at_once > MOST_AT_ONCE:
        what = f"{framework.slots} slots of {framework.batch.size} are more than {MOST_AT_ONCE}"
        cure = f"set it to {MOST_AT_ONCE // framework.slots} or less, or set fewer slots"
        yield Problem(f"{FRAMEWORK}.batch.size", f"{what} messages in handlers at once", cure)
    if framework.store is StoreKind.MEMORY and framework.ordering is not Ordering.NONE:
        what = 'with store = "memory" a message that fails is overtaken by those behind it'
        yield Problem(f"{FRAMEWORK}.ordering", what, 'set ordering = "none", or remove store')
    yield from _timeouts(framework)
    outbox = framework.outbox
    is_nowhere = framework.store is StoreKind.MEMORY and outbox.database is None
    if framework.publishing is PublishingKind.OUTBOX and is_nowhere:
        what = 'with store = "memory" there is no place for an outbox'
        cure = 'set outbox.database, or publishing = "direct"'
        yield Problem(f"{FRAMEWORK}.publishing", what, cure)
    if outbox.endpoint_timeout >= outbox.lease:
        what = f"{duration_text(outbox.endpoint_timeout)} is not shorter than lease"
        lease = duration_text(outbox.lease)
        cure = f"set it below {lease}, or set a longer lease"
        yield Problem(f"{FRAMEWORK}.outbox.timeout", f"{what} ({lease})", cure)
    recovery = framework.recovery
    if recovery.on_exhausted is OnExhausted.REJECT and recovery.delays and not recovery.hold_slots:
        what = 'with on_exhausted = "reject" a message is held until its next attempt'
        yield Problem(f"{FRAMEWORK}.recovery.hold_slots", what, "set it above 0, or delays = []")


def refuse_conflicts(framework: Framework, recovery: Recovery) -> None:
    """Check the framework's settings together with the ``recovery`` of a consumer's class.

    Raises:
        ConfigurationError: *framework* with this *recovery* contradicts itself.
    """
    problems = tuple(conflicts(framework.model_copy(update={"recovery": recovery})))
    if problems:
        raise ConfigurationError(*problems)


def _timeouts(framework: Framework) -> Iterator[Problem]:
    timeout, ack_timeout = framework.handler_timeout, framework.recovery.ack_timeout
    # No limit is allowed: the broker may then deliver the message again while the handler runs.
    if timeout is None or math.isinf(timeout) or timeout < ack_timeout:
        return
    limit = duration_text(ack_timeout)
    yield Problem(
        f"{FRAMEWORK}.handler_timeout",
        f"{duration_text(timeout)} is not shorter than "
        f"recovery.ack_timeout ({limit}), after which the broker takes messages back",
        f"set it below {limit}, or ack_timeout to the broker's consumer_timeout",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Overrides:
    """Options of the command line that replace values of the file; empty ones replace nothing.

    Attributes:
        app_name: The name of the connection for the broker's administrators.
        queue_name: Consume from this queue alone, with the settings that the configuration has
            for it, or else for its server-named queue.
        exchange: Bind to this exchange instead.
        routing_keys: Bind with these keys instead.
    """

    app_name: str = ""
    queue_name: str = ""
    exchange: str = ""
    routing_keys: tuple[str, ...] = ()


NO_OVERRIDES = Overrides()


def override(document: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Return *document* with *overrides* applied, as ``fedora-messaging consume`` applies them."""
    result = dict(document)
    name = overrides.queue_name
    queues, bindings = document["queues"], document["bindings"]
    if name and isinstance(queues, dict):
        result["queues"] = {name: queues.get(name) or queues.get("") or TRANSIENT_QUEUE}
    changes = {
        "queue": name,
        "exchange": overrides.exchange,
        "routing_keys": list(overrides.routing_keys),
    }
    given = {key: value for key, value in changes.items() if value}
    if given and isinstance(bindings, list):
        tables = (binding for binding in bindings if isinstance(binding, dict))
        result["bindings"] = [{**binding, **given} for binding in tables]
    properties = document["client_properties"]
    if overrides.app_name and isinstance(properties, dict):
        result["client_properties"] = {**properties, "app": overrides.app_name}
    return result


def parse(document: Mapping[str, Any], *, default_bindings: bool = False) -> Settings:
    """Check a configuration and freeze it.

    Args:
        document: The configuration with fedora-messaging's defaults under it.
        default_bindings: The bindings are defaults, so no problem is theirs.

    Raises:
        ConfigurationError: With every problem there is, each with its TOML path.
    """
    problems = _framework_problems(document)
    if document.get("queues") == {}:
        cure = "add a [queues.NAME] table, or remove [queues] for a queue that the broker names"
        problems.append(Problem("queues", "there is no queue to consume from", cure))
    if not default_bindings:
        problems += _undeclared_queues(document)
    try:
        settings = Settings.model_validate(document)
    except pydantic.ValidationError as error:
        problems = [*from_pydantic(error, "", Settings, document), *problems]
    if problems:
        raise ConfigurationError(*problems)
    return settings


def outbox_settings(document: Mapping[str, Any]) -> OutboxSettings:
    """Return the table ``[consumer_config.framework.outbox]`` alone of a configuration.

    Raises:
        ConfigurationError: It is invalid. The rest of the configuration is not looked at.
    """
    config = document["consumer_config"]
    framework = config.get("framework", {}) if isinstance(config, dict) else {}
    table = framework.get("outbox", {}) if isinstance(framework, dict) else {}
    return outbox_table(table, f"{FRAMEWORK}.outbox")


def outbox_table(table: Any, path: str) -> OutboxSettings:
    """Return the settings of an outbox in *table*, which people find at *path*.

    Raises:
        ConfigurationError: It is invalid.
    """
    try:
        return OutboxSettings.model_validate(table)
    except pydantic.ValidationError as error:
        raise ConfigurationError(*from_pydantic(error, path, OutboxSettings, table)) from error


def _undeclared_queues(document: Mapping[str, Any]) -> list[Problem]:
    # fedora-messaging skips such bindings silently, and the consumer waits for ever.
    queues, bindings = document.get("queues"), document.get("bindings")
    if not isinstance(queues, dict) or not queues or not isinstance(bindings, list):
        return []
    tables = ((i, binding) for i, binding in enumerate(bindings) if isinstance(binding, dict))
    names = ((i, binding.get("queue", "")) for i, binding in tables)
    texts = ((i, name) for i, name in names if isinstance(name, str))
    return [_undeclared_queue(i, name, queues) for i, name in texts if name not in queues]


def _undeclared_queue(index: int, queue: str, declared: Iterable[str]) -> Problem:
    names = ", ".join(f'"{name}"' for name in declared) or "none"
    what = f'there is no [queues."{queue}"] for this binding'
    cure = f"declare it, or name a queue that is declared ({names})"
    return Problem(f"bindings[{index}].queue", what, cure)


def _framework_problems(document: Mapping[str, Any]) -> list[Problem]:
    config = document.get("consumer_config")
    table = config.get("framework", {}) if isinstance(config, dict) else {}
    try:
        framework = Framework.model_validate(table)
    except pydantic.ValidationError as error:
        return list(from_pydantic(error, FRAMEWORK, Framework, table))
    return [*conflicts(framework), *_broker_problems(document.get("amqp_url"), framework)]


def _broker_problems(amqp_url: object, framework: Framework) -> list[Problem]:
    if not isinstance(amqp_url, str):
        return []
    try:
        return list(broker_problems(amqp_url, framework.brokers, f"{FRAMEWORK}.brokers"))
    except ValueError:
        # Another check reports the malformed URL.
        return []
