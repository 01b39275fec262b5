# SPDX-License-Identifier: GPL-2.0-or-later
"""One consumer on one channel, and how its deliveries are made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import Delivery, readable

from .frames import restored

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.twisted_connection import TwistedChannel

    from .frames import Receiver


@dataclass(eq=False, slots=True)
class Subscription:
    """One consumer on one channel.

    Attributes:
        configured_name: What the configuration calls the queue; "" lets the broker choose.
        queue: What the broker calls it.
        receivers: Who gets the deliveries of the connection, by channel number.
        consumer_tag: The broker's name for the consumer; "" where it is not confirmed.
        latest_tag: How many deliveries came on the channel.
        count: How many messages the broker sends to the consumer before one is settled; 0 for no
            limit.
        base_tag: How many deliveries had come on the channel when the consumer began.
        is_waiting: Whether a new consumer waits until fewer messages are unsettled.
        is_wanted: Whether deliveries are taken; those after a ``basic.cancel`` are not.
    """

    configured_name: str
    queue: str
    channel: TwistedChannel
    generation: int
    receivers: dict[int, Receiver]
    consumer_tag: str = ""
    latest_tag: int = 0
    count: int = 0
    base_tag: int = 0
    is_waiting: bool = False
    is_wanted: bool = False


def receiver(
    subscription: Subscription,
    delivered: Callable[[Delivery], None],
    give_back: Callable[[Delivery], object],
) -> Receiver:
    """Return what takes the deliveries of *subscription*.

    Args:
        subscription: The consumer.
        delivered: Gets those that are wanted.
        give_back: Gets the others.
    """
    queue, generation = subscription.queue, subscription.generation

    def receive(  # noqa: PLR0913, PLR0917 -- what a delivery has
        tag: int,
        redelivered: bool,  # noqa: FBT001 -- as above
        exchange: str,
        key: str,
        properties: Any,
        body: bytes,
    ) -> None:
        subscription.latest_tag = tag
        delivery = Delivery(
            queue=queue,
            generation=generation,
            delivery_tag=tag,
            redelivered=redelivered,
            exchange=readable(exchange),
            routing_key=readable(key),
            properties=properties,
            body=body,
            received_at=time.time(),
            arrived_at=time.monotonic(),
        )
        if subscription.is_wanted:
            delivered(delivery)
        else:
            give_back(delivery)

    return receive


def from_pika(receive: Receiver) -> Callable[[Any, Any, Any, bytes], None]:
    """Take deliveries that pika has put together."""

    def callback(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
        receive(
            method.delivery_tag,
            method.redelivered,
            method.exchange,
            method.routing_key,
            restored(properties),
            body,
        )

    return callback
