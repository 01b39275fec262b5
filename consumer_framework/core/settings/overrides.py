# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command line says instead of the file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .file import TRANSIENT_QUEUE

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says instead of the file; empty values leave the file's.

    Attributes:
        app_name: How the broker's administrators see the connection.
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
