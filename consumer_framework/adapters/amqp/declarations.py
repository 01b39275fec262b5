# SPDX-License-Identifier: GPL-2.0-or-later
"""What fedora-messaging's protocol declares, as it takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumer_framework.core.settings import Queue, Settings


def declaration(name: str, queue: Queue, settings: Settings) -> Any:
    """The queue that the configuration calls *name*; whether it is only looked at, is its word."""
    passive = settings.passive_declares if queue.passive is None else queue.passive
    return {
        "queue": name,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "exclusive": queue.exclusive,
        "arguments": queue.arguments,
        "passive": passive,
    }


def bindings(name: str, actual_name: str, settings: Settings) -> Any:
    """The bindings of a queue, which the broker calls *actual_name*."""
    return [
        {
            "queue": actual_name,
            "exchange": binding.exchange,
            "routing_key": key,
            "arguments": binding.arguments,
        }
        for binding in settings.bindings_of(name)
        for key in binding.routing_keys
    ]
