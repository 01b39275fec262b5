# SPDX-License-Identifier: GPL-2.0-or-later
"""Links to brokers that end a connection, or a session of it, for the fault of a single message.

STOMP and AMQP 1.0 have no answer for some faults: RabbitMQ ends the connection, and does not say
which message it means. A :class:`RetryingLink` then connects again, and sends the messages whose
fate is unknown one at a time. Now the message that ends the connection is known, and the others are
sent. Those before it may arrive twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from . import Reject, Retry, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Result


class EndedError(Exception):
    """The broker ended the connection or the session.

    Attributes:
        word: The broker's word for its reason; "" if it gave none.
    """

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


class Pending:
    """The messages that a link has sent, and whose fate it does not know yet.

    It outlives a batch: a blocked link is kept, and its messages are not sent again.
    """

    def __init__(self) -> None:
        # By tag: the number of the message in its batch, None between two batches, and its id.
        self._sent: dict[Any, tuple[int | None, str]] = {}
        # Settled between two batches, by message id.
        self._late: dict[str, Result] = {}
        self._fates: dict[int, Result] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def begin(
        self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]
    ) -> list[tuple[int, Outgoing]]:
        """Begin a batch, and return the messages of it that were not sent before."""
        self._fates = fates
        self.end()
        tags = {identity: tag for tag, (_, identity) in self._sent.items()}
        rest = []
        for number, message in batch:
            if (result := self._late.pop(message.id, None)) is not None:
                fates[number] = result
            elif (tag := tags.pop(message.id, None)) is not None:
                self._sent[tag] = number, message.id
            else:
                rest.append((number, message))
        return rest

    def end(self) -> None:
        """End a batch: fates that become known from now on are for the next one."""
        self._sent = {tag: (None, identity) for tag, (_, identity) in self._sent.items()}

    def add(self, tag: Any, number: int, message: Outgoing) -> None:
        """Note that *message* is about to be sent."""
        self._sent[tag] = number, message.id

    def settle(self, tag: Any, result: Result) -> None:
        """Note the fate of a message; an unknown tag does no harm."""
        number, identity = self._sent.pop(tag, (None, ""))
        if number is not None:
            self._fates[number] = result
        elif identity:
            self._late[identity] = result

    def forget(self) -> None:
        """Forget the messages whose fate is unknown; the fate of none will be noted any more."""
        self._sent.clear()


class Session(Protocol):
    """One connection, which is of no use after its first fault."""

    @property
    def is_ended(self) -> bool:
        """True if a new one is needed."""
        ...

    @property
    def pending(self) -> Pending:
        """The messages that were sent on it."""
        ...

    def pipeline(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Send *batch*, and wait until the fate of each message is known.

        Raises:
            ConnectionError: The broker does not answer.
            EndedError: It ended the connection.
        """
        ...

    def close(self) -> None:
        """Close it, whatever its state is. Never raises."""
        ...


class RetryingLink:
    """A :class:`.failover.Link` that makes its connection again for the fault of a message.

    Args:
        connect: Makes a connection; raises OSError.
        faults: For each word of the broker the scope of the fault, or None if the broker never
            takes such a message. The scope of other words is the message.
        of_exchange: The words whose fault is that of each message for the same exchange.
    """

    def __init__(
        self,
        connect: Callable[[], Session],
        faults: Mapping[str, Scope | None],
        of_exchange: frozenset[str],
    ) -> None:
        self._connect = connect
        self._faults = faults
        self._of_exchange = of_exchange
        self.session = connect()

    def send(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Send *batch*; see :class:`.failover.Link`."""
        if self.session.is_ended and not self.session.pending:
            # It was idle: the broker has ended it, or would soon.
            self._connect_again()
        try:
            self.session.pipeline(batch, fates)
        except EndedError:
            self._one_by_one([pair for pair in batch if pair[0] not in fates], fates)

    def close(self) -> None:
        """Close the connection."""
        self.session.close()

    def _connect_again(self) -> None:
        self.session.close()
        self.session = self._connect()

    def _one_by_one(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        refused: dict[tuple[str, str | None], Result] = {}
        self._connect_again()
        for number, message in batch:
            topic, exchange = (message.exchange, message.topic), (message.exchange, None)
            if known := refused.get(topic) or refused.get(exchange):
                fates[number] = known
                continue
            try:
                self.session.pipeline([(number, message)], fates)
            except EndedError as error:
                result = fates[number] = self._result_of(error)
                if isinstance(result, Retry):
                    refused[exchange if error.word in self._of_exchange else topic] = result
                self._connect_again()

    def _result_of(self, error: EndedError) -> Result:
        scope = self._faults.get(error.word, Scope.MESSAGE)
        if scope is None:
            return Reject(f"the broker refused it: {error}")
        return Retry(f"the broker refused it: {error}", scope)
