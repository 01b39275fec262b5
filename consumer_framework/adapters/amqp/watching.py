# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches exchanges through a queue of its own, and takes no message from anybody.

The queue is exclusive, is deleted with its connection, and has a name that the broker chooses
(``amq.gen-...``): nobody else can consume from it. Fedora's public broker lets everybody declare
such a queue. Exchanges are not declared: that takes a right that a reader lacks.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from pika import exceptions

from consumer_framework.core.delivery import Delivery
from consumer_framework.core.errors import ExitCode, Fault

from . import faults
from .frames import Frames, restored
from .inspection import connect, parameters_of, quiet_pika

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import pika

    from consumer_framework.settings import Address, Binding

# Seconds: the longest that a delivery waits in this process.
_STEP = 0.1
_generations = itertools.count(1)


class LostError(ConnectionError):
    """The connection ended, or the queue is gone; the message says why. Another may do."""


class Watch:
    """One connection with a queue of its own, bound as *bindings* say.

    Use it as a context manager, from one thread.

    Args:
        address: The broker. User, password, virtual host and TLS are those of fedora-messaging's
            configuration.
        bindings: The exchanges and keys. Their queues do not matter.

    Raises:
        UnreachableError: The broker does not answer.
        Fault: It refuses the connection, the queue or a binding.
    """

    def __init__(self, address: Address, bindings: Sequence[Binding]) -> None:
        self.host = str(address)
        self._generation = next(_generations)
        self._got: list[Delivery] = []
        self._is_canceled = False
        with quiet_pika():
            self._connection = connect(parameters_of(address), self.host)
            try:
                self._channel = self._connection.channel()
                self.queue = self._declared()
                self._bind(bindings)
                self._consume()
            except exceptions.AMQPConnectionError as error:
                raise faults.connection_fault(error, self.host) from error
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, with which the broker deletes the queue."""
        with quiet_pika():
            try:
                if self._connection.is_open:
                    self._connection.close()
            except exceptions.AMQPError:
                # It ended at the same time.
                return

    def wait(self) -> list[Delivery]:
        """Return the deliveries of the next moment in their order; there may be none.

        Raises:
            LostError: The connection or the queue is gone.
        """
        try:
            with quiet_pika():
                self._connection.process_data_events(_STEP)
        except exceptions.AMQPError as error:
            if not self._got:
                raise LostError(faults.one_line(error)) from error
        if self._got:
            # Large messages come by another way than small ones.
            got, self._got = sorted(self._got, key=lambda each: each.delivery_tag), []
            return got
        if self._is_canceled or not self._channel.is_open:
            raise LostError("the broker deleted the queue")
        return []

    def _declared(self) -> str:
        try:
            made = self._channel.queue_declare("", exclusive=True, auto_delete=True)
        except exceptions.ChannelClosedByBroker as error:
            text = f"the broker does not let this user declare a queue: {faults.one_line(error)}"
            cure = "watch as a user who may configure, write and read queues named amq.gen-..."
            raise Fault(ExitCode.BAD_DECLARATION, f"{text}; {cure}") from error
        return str(made.method.queue)

    def _bind(self, bindings: Sequence[Binding]) -> None:
        for binding in bindings:
            for key in binding.routing_keys:
                try:
                    self._channel.queue_bind(
                        self.queue, binding.exchange, key, arguments=dict(binding.arguments)
                    )
                except exceptions.ChannelClosedByBroker as error:
                    raise _binding_fault(binding.exchange, key, error) from error

    def _consume(self) -> None:
        # Frames takes the small deliveries out of the stream, and shields pika from properties
        # that it cannot decode.
        implementation: Any = self._connection._impl  # noqa: SLF001 -- there is no public stream
        frames = Frames(implementation._on_data_available)  # noqa: SLF001 -- as above
        frames.receivers[int(self._channel.channel_number)] = self._receive

        def on_data(data: bytes) -> None:
            # By this number pika tells a connection that is alive.
            implementation.bytes_received += len(data)
            frames.feed(data)

        implementation._on_data_available = on_data  # noqa: SLF001 -- as above
        self._channel.add_on_cancel_callback(self._canceled)
        try:
            self._channel.basic_consume(
                self.queue, self._receive_large, auto_ack=True, exclusive=True
            )
        except exceptions.ChannelClosedByBroker as error:
            text = f"the broker does not let this user read a queue: {faults.one_line(error)}"
            cure = "ask its administrators for the right to read queues named amq.gen-..."
            raise Fault(ExitCode.PERMISSION, f"{text}; {cure}") from error

    def _canceled(self, _frame: object) -> None:
        self._is_canceled = True

    def _receive_large(
        self, _channel: object, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        self._receive(
            method.delivery_tag,
            method.redelivered,
            method.exchange,
            method.routing_key,
            restored(properties),
            body,
        )

    def _receive(  # noqa: PLR0913, PLR0917 -- as Frames calls it
        self,
        tag: int,
        redelivered: bool,  # noqa: FBT001 -- likewise
        exchange: str,
        routing_key: str,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        self._got.append(
            Delivery(
                queue=self.queue,
                generation=self._generation,
                delivery_tag=tag,
                redelivered=redelivered,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                body=body,
                received_at=time.time(),
            )
        )


def _binding_fault(exchange: str, key: str, error: BaseException) -> Fault:
    what = f'the broker does not let this user watch "{key}" of the exchange "{exchange}"'
    cure = {
        faults.NOT_FOUND: "name another one with --exchange",
        faults.ACCESS_REFUSED: "ask its administrators for the right to read that exchange",
    }.get(faults.reply_code(error), "see the broker's log")
    return Fault(ExitCode.BAD_DECLARATION, f"{what}: {faults.one_line(error)}; {cure}")
