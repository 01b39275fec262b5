# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells a message that is delivered again from another one that is equal to it.

Nothing makes publishers give their messages ids, let alone different ones. A journal that took two
equal messages for one would lose the second.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delivery import Delivery

    _Key: TypeAlias = tuple[str, str, str, bytes]

# Beyond these, two equal messages with one id may be taken for one.
REMEMBERED = 10_000


class Twins:
    """Remembers which delivery each message of a journal came with.

    A row answers for one delivery on each channel: two deliveries on one channel are two messages.
    A message without an id is never taken for one that the journal has. It may run a second time
    where the process died before the broker was told; it is never lost.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[_Key, tuple[int, int]] = OrderedDict()

    def is_known(self, delivery: Delivery, is_open: Callable[[Delivery], bool]) -> bool:
        """Say whether *delivery* brings a message again that the journal has.

        Args:
            delivery: What the broker delivered.
            is_open: Whether the journal has an equal message.
        """
        if not delivery.redelivered:
            return is_open(delivery)
        if not delivery.message_id or self._is_taken(delivery) or not is_open(delivery):
            return False
        self._remember(delivery)
        return True

    def is_another(self, delivery: Delivery) -> bool:
        """Say whether *delivery* needs a row of its own beside that of an equal message."""
        if delivery.row or self._latest.get(_key(delivery)) == _came(delivery):
            return False
        is_again = delivery.redelivered and delivery.message_id
        is_another = not is_again or self._is_taken(delivery)
        self._remember(delivery)
        return is_another

    def _is_taken(self, delivery: Delivery) -> bool:
        latest = self._latest.get(_key(delivery), (0, 0))
        return latest[0] >= delivery.generation and latest != _came(delivery)

    def _remember(self, delivery: Delivery) -> None:
        key = _key(delivery)
        self._latest[key] = _came(delivery)
        self._latest.move_to_end(key)
        if len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)


def _came(delivery: Delivery) -> tuple[int, int]:
    return delivery.generation, delivery.delivery_tag


def _key(delivery: Delivery) -> _Key:
    digest = hashlib.sha256(delivery.body).digest()
    return delivery.queue, delivery.message_id, delivery.routing_key, digest
