# SPDX-License-Identifier: GPL-2.0-or-later
"""What the arguments of a queue mean for those who consume from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import Queue

# https://www.rabbitmq.com/docs/consumers#single-active-consumer
SINGLE_ACTIVE = "x-single-active-consumer"


def is_single_active(queue: Queue) -> bool:
    """Whether the broker gives its messages to one consumer, and the next when that is gone."""
    return queue.arguments.get(SINGLE_ACTIVE) is True
