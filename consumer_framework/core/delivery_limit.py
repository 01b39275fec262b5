# SPDX-License-Identifier: GPL-2.0-or-later
"""How often a quorum queue lets a message come back before it drops or dead-letters it.

The queue counts each return in the header ``x-delivery-count``: what is given back, and what was
unacknowledged when its channel or its consumer's process ended. RabbitMQ 4.3 does not count what is
given back in good order. See https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .delivery import Delivery

LIMIT = "x-delivery-limit"
COUNT = "x-delivery-count"
# Where nobody asks for another one.
DEFAULT_LIMIT = 20
DEFAULT_SINCE = (4,)
# Why a message is put into the journal that its handler has not seen.
NEAR_LIMIT = "kept: the queue would drop it if it came back too often"


def version_of(text: str) -> tuple[int, ...] | None:
    """Return a broker's version as numbers, None where *text* begins with none."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else None


def limit_of(
    arguments: Mapping[str, Any], version: tuple[int, ...] | None, *, is_quorum: bool = False
) -> int | None:
    """Return how often a message may come back to a queue.

    Args:
        arguments: Those of the queue, as far as they are known. A policy cannot be read.
        version: The broker's, None where it is not known.
        is_quorum: Whether it is a quorum queue, whatever the arguments say.

    Returns:
        None for no limit, or for none that is known.
    """
    limit = arguments.get(LIMIT)
    if isinstance(limit, int) and not isinstance(limit, bool):
        return limit if limit >= 0 else None
    is_quorum = is_quorum or arguments.get("x-queue-type") == "quorum"
    is_limited = version is not None and version >= DEFAULT_SINCE
    return DEFAULT_LIMIT if is_quorum and is_limited else None


def count_of(delivery: Delivery) -> int | None:
    """Return how often the message came back to its queue, None where the queue does not count."""
    count = (delivery.properties.headers or {}).get(COUNT)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def is_near(count: int, limit: int) -> bool:
    """Whether a message that came back *count* times should not come back again.

    One return is left for a crash, which nobody can prevent; with a limit of 0 there is none.
    """
    return count >= max(limit - 1, min(limit, 1))
