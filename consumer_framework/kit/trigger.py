# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of ``fm-consumer trigger``, made of its options.

It is an ordinary configuration with :class:`.RunCommand`, so that a trigger that has proved useful
becomes a service by writing the same text into a file.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

from consumer_framework.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CALLBACK = "consumer_framework.kit.command:RunCommand"
# The keys of another configuration that say where the broker is, and how to get there.
CONNECTION = ("amqp_url", "tls", "passive_declares", "client_properties")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Trigger:
    """The options of a trigger.

    Attributes:
        topics: The topics, with the wildcards of AMQP.
        command: The program and its arguments.
        connection: The keys of :data:`CONNECTION`.
        queue: The name of a durable queue; "" for a queue that ends with the trigger.
        exchange: The exchange with the messages.
        timeout: The time limit of the command.
        count: The number of messages after which to stop; None for no limit.
        directory: The working directory of the command.
        environment: The names of variables that the command gets.
        log_level: The lowest level that is logged.
    """

    topics: Sequence[str]
    command: Sequence[str]
    connection: Mapping[str, Any]
    queue: str = ""
    exchange: str = "amq.topic"
    timeout: str = "5m"
    count: int | None = None
    directory: str = "/"
    environment: Sequence[str] = ()
    log_level: str = "WARNING"

    def document(self) -> dict[str, Any]:
        """Return the configuration."""
        is_own = not self.queue
        # Fedora's public broker takes no other names than UUIDs.
        name = self.queue or str(uuid.uuid4())
        queue = {
            "durable": not is_own,
            "auto_delete": is_own,
            "exclusive": is_own,
            "arguments": {},
        }
        binding = {"queue": name, "exchange": self.exchange, "routing_keys": list(self.topics)}
        return {
            **self.connection,
            "callback": CALLBACK,
            "bindings": [binding],
            "queues": {name: queue},
            "consumer_config": self._command(),
            "log_config": _log_config(self.log_level),
        }

    def of_service(self) -> dict[str, Any]:
        """Return the configuration without the keys that suit a terminal only."""
        document = self.document()
        del document["log_config"]
        for key in ("directory", "pass_environment", "output", "on_stop"):
            del document["consumer_config"][key]
        return document

    def _command(self) -> dict[str, Any]:
        table = {
            "command": list(self.command),
            "timeout": self.timeout,
            "directory": self.directory,
            "pass_environment": list(self.environment),
            "output": "inherit",
            "on_stop": "terminate",
        }
        return table if self.count is None else {**table, "stop_after": self.count}


def _log_config(level: str) -> dict[str, Any]:
    handler = {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "fm-consumer: %(message)s"}},
        "handlers": {"console": handler},
        # It reports a lost connection in a dozen lines; the framework's log has the substance.
        "loggers": {"pika": {"level": "CRITICAL"}},
        "root": {"level": level, "handlers": ["console"]},
    }


def to_toml(document: Mapping[str, Any]) -> str:
    """Write *document* as TOML, with a heading for each table.

    Raises:
        ConfigurationError: A value is of a type that TOML does not have.
    """
    return "\n".join(_table(document, "")).strip() + "\n"


def _table(table: Mapping[str, Any], path: str) -> Iterator[str]:
    nested = {key: value for key, value in table.items() if _is_nested(value)}
    for key, value in table.items():
        if key not in nested and value is not None:
            yield f"{_key(key)} = {_value(value, f'{path}{key}')}"
    for key, value in nested.items():
        inner = f"{path}{_key(key)}"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(value, list):
                yield f"\n[[{inner}]]"
            elif not all(map(_is_nested, each.values())):
                yield f"\n[{inner}]"
            yield from _table(each, f"{inner}.")


def _is_nested(value: Any) -> bool:
    is_tables = isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
    return (isinstance(value, dict) and bool(value)) or bool(is_tables)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any, path: str) -> str:
    match value:
        case str():
            return _text(value)
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case list() | tuple():
            return f"[{', '.join(_value(each, path) for each in value)}]"
        case dict():
            pairs = (f"{_key(k)} = {_value(v, path)}" for k, v in value.items())
            return f"{{{', '.join(pairs)}}}"
    problem = Problem(path, f"has a value of type {type(value).__name__}", "write it as text")
    raise ConfigurationError(problem)


def _text(text: str) -> str:
    # JSON's strings are TOML's, but for DEL. Pairs of surrogates are none in TOML.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
