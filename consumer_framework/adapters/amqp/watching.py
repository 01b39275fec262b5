# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads messages, and takes none from anybody.

:class:`Watch` has a queue of its own. It is exclusive, is deleted with its connection, and has a
name that the broker chooses (``amq.gen-...``): nobody else can consume from it. Fedora's public
broker lets everybody declare such a queue. Exchanges are not declared: that takes a right that a
reader lacks.

:class:`Loan` reads the messages that wait in somebody's queue. It acknowledges none, and all of
them go back to their places in the queue, also if the process dies.
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
# Messages that a queue lends: AMQP has 16 bits for them.
MOST_LENT = 65535
_generations = itertools.count(1)


class LostError(ConnectionError):
    """The connection ended, or the queue is gone; the message says why. Another may do."""


class _Reader:
    """One connection with one channel, which consumes from one queue.

    Use it as a context manager, from one thread.

    Attributes:
        host: The broker as ``HOST:PORT``.
        queue: The name of the queue.
        readable_queues: The queues that the user must be allowed to read, in words.
    """

    queue: str
    readable_queues = "queues named amq.gen-..."

    def __init__(self, address: Address) -> None:
        self.host = str(address)
        self._generation = next(_generations)
        self._got: list[Delivery] = []
        self._is_canceled = False
        with quiet_pika():
            self._connection = connect(parameters_of(address), self.host)
            try:
                self._channel = self._connection.channel()
                self._begin()
            except exceptions.AMQPConnectionError as error:
                raise faults.connection_fault(error, self.host) from error
            except BaseException:
                self.close()
                raise

    def _begin(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
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

    def _consume(self, *, auto_ack: bool, exclusive: bool) -> None:
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
            self._tag = self._channel.basic_consume(
                self.queue, self._receive_large, auto_ack=auto_ack, exclusive=exclusive
            )
        except exceptions.ChannelClosedByBroker as error:
            text = f"the broker does not let this user read a queue: {faults.one_line(error)}"
            cure = f"ask its administrators for the right to read {self.readable_queues}"
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


class Watch(_Reader):
    """One connection with a queue of its own, bound as *bindings* say; both end together.

    Args:
        address: The broker. User, password, virtual host and TLS are those of fedora-messaging's
            configuration.
        bindings: The exchanges and keys. Their queues do not matter.

    Raises:
        UnreachableError: The broker does not answer.
        Fault: It refuses the connection, the queue or a binding.
    """

    def __init__(self, address: Address, bindings: Sequence[Binding]) -> None:
        self._bindings = bindings
        super().__init__(address)

    def _begin(self) -> None:
        self.queue = self._declared()
        self._bind(self._bindings)
        self._consume(auto_ack=True, exclusive=True)

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


class Loan(_Reader):
    """The messages that wait in a queue, lent to this process until :meth:`give_back`.

    A lent message is at no other consumer, so a queue that has consumers is refused. It comes back
    to its place in the queue, marked as redelivered. In a quorum queue that counts against the
    delivery limit, behind which a message is dropped, so a quorum queue is refused too.

    Args:
        address: As for :class:`Watch`.
        queue: The name of the queue.
        most: So many messages at most, 1 to :data:`MOST_LENT`.

    Attributes:
        count: The number of messages that are lent.

    Raises:
        UnreachableError: The broker does not answer.
        Fault: It refuses the connection or the queue, or this class refuses the queue.
    """

    def __init__(self, address: Address, queue: str, most: int) -> None:
        self.queue = queue
        self.readable_queues = f'the queue "{queue}"'
        self._most = most
        self.count = 0
        super().__init__(address)

    def give_back(self) -> None:
        """Give all messages back to their places in the queue."""
        if not self.count:
            return
        with quiet_pika():
            try:
                # First, or they would come again at once.
                self._channel.basic_cancel(self._tag)
                self._channel.basic_nack(0, multiple=True, requeue=True)
            except exceptions.AMQPError:
                # The broker gives them back itself when the channel ends.
                return

    def _begin(self) -> None:
        waiting, consumers = self._counted()
        if consumers:
            what = f'the queue "{self.queue}" has consumers, from which its messages would be taken'
            cure = f"stop them ({consumers}), or record what is published from now on, by --topic"
            raise Fault(ExitCode.TEMPORARY, f"{what}; {cure}")
        self._refuse_delivery_limit()
        self.count = min(waiting, self._most)
        if self.count:
            self._channel.basic_qos(prefetch_count=self.count)
            self._consume(auto_ack=False, exclusive=False)

    def _counted(self) -> tuple[int, int]:
        try:
            method = self._channel.queue_declare(self.queue, passive=True).method
        except exceptions.ChannelClosedByBroker as error:
            cure = {
                faults.NOT_FOUND: "name one that is there",
                faults.ACCESS_REFUSED: "ask its administrators for the right to read it",
                faults.RESOURCE_LOCKED: "another connection has it for itself: stop that one",
            }.get(faults.reply_code(error), "see the broker's log")
            text = f'the queue "{self.queue}" cannot be read: {faults.one_line(error)}; {cure}'
            raise Fault(ExitCode.BAD_DECLARATION, text) from error
        return int(method.message_count), int(method.consumer_count)

    def _refuse_delivery_limit(self) -> None:
        """Refuse a queue that counts how often a message came back, or may do so.

        A declaration with another type is refused by the broker, which names the type of the queue
        (AMQP 0-9-1, class queue, method declare, rule "equivalence"). A queue that is not durable
        differs in that already; it is a classic one, without a limit.
        """
        channel = self._connection.channel()
        found = "stream"
        try:
            channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": "stream"})
        except exceptions.ChannelClosedByBroker as error:
            is_told = faults.reply_code(error) == faults.PRECONDITION_FAILED
            found = error.reply_text.partition("current is")[2] if is_told else "unknown"
        problem = next((text for kind, text in _UNFIT.items() if kind in found), "")
        if problem:
            cure = "record what is published from now on, by --topic or the bindings of --conf"
            what = f'the queue "{self.queue}" {problem}'
            raise Fault(ExitCode.BAD_DECLARATION, f"{what}; {cure}")


# Parts of the broker's words for the type of a queue, and the reason against a loan.
_UNFIT = {
    "quorum": "is a quorum queue, which counts each return of a message against its delivery limit",
    "stream": "is a stream, in which no message waits",
    "unknown": "may be a quorum queue: the broker does not tell this user the type",
}


def _binding_fault(exchange: str, key: str, error: BaseException) -> Fault:
    what = f'the broker does not let this user watch "{key}" of the exchange "{exchange}"'
    cure = {
        faults.NOT_FOUND: "name another one with --exchange",
        faults.ACCESS_REFUSED: "ask its administrators for the right to read that exchange",
    }.get(faults.reply_code(error), "see the broker's log")
    return Fault(ExitCode.BAD_DECLARATION, f"{what}: {faults.one_line(error)}; {cure}")
