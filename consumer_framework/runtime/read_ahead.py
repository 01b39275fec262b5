# SPDX-License-Identifier: GPL-2.0-or-later
"""Bounds the bytes of messages that wait in memory.

AMQP bounds their number only: RabbitMQ implements no ``prefetch_size``. So the prefetch count
follows from the sizes of the messages. The first messages that exceed the bound go back to the
queue, in order, and the broker sends them again to a consumer with a lower count.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from consumer_framework.adapters.systemd.cgroup import free_memory, most_memory

if TYPE_CHECKING:
    from consumer_framework.adapters.amqp.channels import Channels
    from consumer_framework.core.delivery import Delivery

    from .instance import Instance

_log = logging.getLogger(__name__)

# One part in so many of the memory limit is for waiting bodies; handlers need the rest.
SHARE = 8
# Bytes of waiting bodies where no memory limit is known.
UNLIMITED = 256 << 20
# The factor by which the largest size seen fades with each message.
_DECAY = 0.99
# Seconds between two checks whether a burst is over.
LOOK_AGAIN = 5.0


class ReadAhead:
    """Decides how many messages the broker sends ahead, from their sizes.

    Args:
        instance: The instance, whose prefetch count follows.
        channels: Counts the unsettled bytes.
    """

    def __init__(self, instance: Instance, channels: Channels) -> None:
        self._instance = instance
        self._channels = channels
        self._size = 1.0
        # Lower than in the settings; None while the settings hold.
        self._count: int | None = None
        self._is_burst = False
        self._cached: int | None = None

    @property
    def limit(self) -> int:
        """The bytes that may wait."""
        written = self._instance.plan.framework.read_ahead_bytes
        if written is not None:
            return written
        most = most_memory()
        return UNLIMITED if most is None else most // SHARE

    def bounded(self, prefetch_count: int) -> int:
        """Return *prefetch_count* (0 for no limit), or fewer if messages are large."""
        if self._count is None:
            return prefetch_count
        return min(prefetch_count or self._count, self._count)

    def takes(self, delivery: Delivery) -> bool:
        """Return True if there is room for *delivery*; give it back otherwise."""
        self._size = max(len(delivery.body), self._size * _DECAY)
        unsettled, limit = self._channels.unsettled_bytes, self._limit()
        if unsettled > limit // SHARE:
            self._watch_burst()
        if unsettled > limit:
            return not self._shrinks(delivery, limit)
        if self._count is not None and limit // self._size >= 2 * self._count:
            self._grow()
        return True

    def _limit(self) -> int:
        if self._cached is None:
            self._cached = self.limit
        return self._cached

    def reload(self) -> None:
        """Read the limit again after a change of the settings."""
        self._cached = None

    def _shrinks(self, delivery: Delivery, limit: int) -> bool:
        session, least = self._instance.session, self._instance.plan.framework.at_once
        count = max(int(limit // self._size), least)
        if session.prefetch_count and count >= session.prefetch_count:
            return False
        self._count = count
        self._instance.memory_relief.apply()
        if not session.give_back_from(delivery):
            return False
        _log.info(
            "messages are large (%d bytes): %d are sent ahead from now on, so that no more than %d "
            "bytes wait in memory (read_ahead_bytes)",
            len(delivery.body),
            count,
            limit,
        )
        return True

    def _grow(self) -> None:
        full = self._instance.plan.prefetch_count
        count = 2 * (self._count or 1)
        self._count = None if full and count >= full else count
        self._instance.memory_relief.apply()

    def _watch_burst(self) -> None:
        if not self._is_burst:
            self._is_burst = True
            self._instance.reactor.callLater(LOOK_AGAIN, self._look)

    def _look(self) -> None:
        if self._channels.unsettled_bytes > self._limit() // SHARE:
            self._instance.reactor.callLater(LOOK_AGAIN, self._look)
            return
        # glibc keeps freed memory for ever.
        self._is_burst = False
        free_memory()
