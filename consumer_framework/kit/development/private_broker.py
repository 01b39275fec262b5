# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection of the session to its private broker: it declares the queues, and publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, UnroutableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .messages import Sendable


class PrivateBrokerError(Exception):
    """The broker refuses something, or is gone."""


class PrivateBroker:
    """A connection to the broker at *url*, for one thread."""

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        # The session does not look at the connection while nothing happens.
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)
        self._channel = self._confirming()
        self._declared: list[Any] = []

    def close(self) -> None:
        """Close the connection."""
        if self._connection.is_open:
            self._connection.close()

    def declare(self, document: Mapping[str, Any]) -> bool:
        """Make the queues, exchanges and bindings of a private copy.

        Queues and bindings that have changed are made anew.

        Returns:
            True if messages may have been lost with a queue.

        Raises:
            PrivateBrokerError: The broker refuses one of them.
        """
        queues, bindings = document["queues"], document["bindings"]
        wanted = [queues, bindings]
        if wanted == self._declared:
            return False
        former = self._declared[0] if self._declared else {}
        try:
            for name in former:
                self._channel.queue_delete(name)
            self._declared = wanted
            self._make(document)
        except (AMQPError, ValueError, TypeError) as error:
            self._declared = [queues, None]
            self._channel = self._confirming() if self._connection.is_open else self._channel
            raise PrivateBrokerError(
                f"the broker refuses a queue or binding: {_text(error)}"
            ) from error
        return bool(former)

    def _make(self, document: Mapping[str, Any]) -> None:
        exchanges = {str(binding["exchange"]) for binding in document["bindings"]}
        exchanges.add(str(document.get("publish_exchange", "amq.topic")))
        for exchange in exchanges:
            # Those of the broker itself exist.
            if exchange and not exchange.startswith("amq."):
                self._channel.exchange_declare(exchange, "topic", durable=True)
        for name, table in document["queues"].items():
            self._channel.queue_declare(name, durable=True, arguments=table["arguments"])
        for binding in document["bindings"]:
            for key in binding.get("routing_keys") or ():
                self._channel.queue_bind(
                    binding["queue"], binding["exchange"], key, binding.get("arguments")
                )

    def publish(self, message: Sendable) -> bool:
        """Publish *message*; return False if no queue is bound for it.

        Raises:
            PrivateBrokerError: The broker is gone, or has no such exchange.
        """
        try:
            self._channel.basic_publish(
                message.exchange, message.topic, message.body, message.properties, mandatory=True
            )
        except UnroutableError:
            return False
        except AMQPError as error:
            if self._connection.is_open:
                self._channel = self._confirming()
            raise PrivateBrokerError(f"the broker refuses a message: {_text(error)}") from error
        return True

    def _confirming(self) -> Any:
        channel = self._connection.channel()
        channel.confirm_delivery()
        return channel


def _text(error: Exception) -> str:
    if isinstance(error, ChannelClosedByBroker):
        return str(error.reply_text)
    return str(error) or type(error).__name__
