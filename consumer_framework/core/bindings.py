# SPDX-License-Identifier: GPL-2.0-or-later
"""The bindings of a configuration, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .settings import Settings


@dataclass(frozen=True, slots=True)
class Bound:
    """One routing key that brings messages of an exchange to a queue.

    Attributes:
        queue: What the configuration calls it; ``""`` for one that the broker names.
    """

    queue: str
    exchange: str
    routing_key: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f'"{self.queue}" to "{self.exchange}" with "{self.routing_key}"'


def bound(settings: Settings) -> list[Bound]:
    """List the bindings of *settings*, in their order, each once."""
    found: list[Bound] = []
    for binding in settings.bindings:
        for key in binding.routing_keys:
            one = Bound(binding.queue, binding.exchange, key, binding.arguments)
            if one not in found:
                found.append(one)
    return found


def without(some: Sequence[Bound], others: Sequence[Bound]) -> list[Bound]:
    """Return those of *some* that are not among *others*."""
    return [one for one in some if one not in others]
