# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of ``fm-consumer trigger``, made of its options.

It is an ordinary configuration with :class:`.RunCommand`, so that a trigger that has proved useful
becomes a service by writing the same text into a file.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CALLBACK = "consumer_framework.kit.command:RunCommand"
# The keys of another configuration that say where the broker is, and how to get there.
CONNECTION = ("amqp_url", "tls", "passive_declares", "client_properties")


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
