# SPDX-License-Identifier: GPL-2.0-or-later
"""Remembers the failed attempts of messages that went back to the broker."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from .attempt import NO_HISTORY, History

if TYPE_CHECKING:
    from .delivery import Delivery

    Key: TypeAlias = tuple[str, str, str, bytes]

# A message whose history is forgotten gets its attempts anew: bounded in sum, not in each.
MEMORY_MESSAGES = 1024


class Histories:
    """What is known of messages that will be delivered again, by queue and message."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, History] = OrderedDict()

    def keep(self, delivery: Delivery) -> None:
        """Remember the history of *delivery*, which goes back to the broker."""
        if delivery.history != NO_HISTORY:
            self._known[_key(delivery)] = delivery.history
            if len(self._known) > MEMORY_MESSAGES:
                self._known.popitem(last=False)

    def recall(self, delivery: Delivery) -> Delivery:
        """Return *delivery* with what is known of its message, and forget that here."""
        if not (delivery.redelivered and self._known):
            return delivery
        history = self._known.pop(_key(delivery), None)
        return delivery if history is None else replace(delivery, history=history)


def _key(delivery: Delivery) -> Key:
    # Bodies may be large. Nothing makes publishers keep their ids unique.
    digest = hashlib.sha256(delivery.body).digest()
    return delivery.queue, delivery.message_id, delivery.routing_key, digest
