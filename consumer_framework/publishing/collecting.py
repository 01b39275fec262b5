# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepare messages, collect those of a block, and store them: the part of each outbox.

:class:`Publisher` knows no table: an outbox of SQLAlchemy (:mod:`.outbox`) and one of Django's own
connection (:mod:`.integrations.django`) add theirs.

A block that collects ends by a commit, or without one. A thread or task that it started may go on
and publish later: then the message goes to the block around it, or is stored at once. Nothing is
added to a block that has ended.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

from consumer_framework.settings import OnFailure, OutboxSettings

from .message import (
    DEAD,
    DISCARDED,
    WAITING,
    NotSentError,
    OutboxError,
    Outgoing,
    PublishError,
    outgoing,
    with_headers,
)
from .policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fedora_messaging.message import Message

__all__ = ["TIMEOUT", "Entry", "Headers", "Pending", "Publisher"]

# A message with its `on_failure`.
Entry: TypeAlias = "tuple[Outgoing, str]"
# Further headers of a message; None for none.
Headers: TypeAlias = "Mapping[str, Any] | None"
# Seconds between two looks at a row that publish() waits for: the first, and the longest.
_FIRST_LOOK, _LONGEST_LOOK = 0.005, 0.25
# Seconds that publish() waits with `on_failure = "wait"`.
TIMEOUT = 30.0


class Pending:
    """Messages that were published in a block, before they are stored.

    Args:
        publisher: The outbox.
        outer: The block around this one, or None.
        headers: Returns further headers of a message; None for no headers.

    Attributes:
        messages: The messages, each with its ``on_failure``, in the order of publishing.
    """

    def __init__(
        self,
        publisher: Publisher,
        outer: Pending | None,
        headers: Callable[[Outgoing], Headers] | None = None,
    ) -> None:
        self._publisher = publisher
        self._outer = outer
        self._headers = headers
        self._is_open = True
        self._lock = threading.Lock()
        self.messages: list[Entry] = []

    def add(self, messages: Iterable[Entry]) -> bool:
        """Take *messages* into this block, or into one around it that has not ended.

        Returns:
            False if all have ended: the caller stores the messages.
        """
        with self._lock:
            if self._is_open:
                self.messages += messages
                return True
        return self._outer is not None and self._outer.add(messages)

    def enriched(self, entry: Entry) -> Entry:
        """Return *entry* with the headers of this block and of those around it, if they are open.

        It is for a message that is stored at once, in a transaction of the application.

        Raises:
            PublishError: A header cannot be sent, or the message has one of its name.
        """
        if self._is_open:
            entry = self._with_headers(entry)
        return entry if self._outer is None else self._outer.enriched(entry)

    def close(self) -> None:
        """Take no more messages. Doing it twice is no harm."""
        with self._lock:
            self._is_open = False

    def commit(self, timeout: float = TIMEOUT) -> None:
        """Close, and store the messages in one transaction. Doing it twice stores them once.

        Args:
            timeout: Seconds to wait for those with ``on_failure = "wait"``.

        Raises:
            OutboxError: None of them was stored; another commit may store them.
            PublishError: A header of the block cannot be sent. None of them was stored.
            NotSentError: All are stored, and one to wait for is not sent in time, or discarded.
        """
        self.close()
        published = self.messages
        messages, self.messages = [self._with_headers(entry) for entry in published], []
        if messages and not (self._outer is not None and self._outer.add(messages)):
            try:
                self._publisher.accept_outside(messages, timeout)
            except OutboxError:
                self.messages = published
                raise

    def _with_headers(self, entry: Entry) -> Entry:
        if self._headers is None:
            return entry
        message, on_failure = entry
        return with_headers(message, self._headers(message)), on_failure

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect the messages that the block publishes. Several blocks may follow each other."""
        before = _collecting.get(_NOTHING)
        token = _collecting.set({**before, self._publisher: self})
        try:
            yield
        finally:
            _collecting.reset(token)


# The blocks that collect, by publisher. Never changed: each block sets a new mapping.
_collecting: ContextVar[Mapping[Publisher, Pending]] = ContextVar("fm_outbox_collecting")
_NOTHING: Mapping[Publisher, Pending] = {}


class Publisher(abc.ABC):
    """Accepts messages for publishing. Several threads and coroutines may use it at once.

    Args:
        settings: The table ``[consumer_config.framework.outbox]``.
        exchange: The exchange of messages that name none.
        topic_prefix: Text before each topic, joined with a dot.
        clock: Returns the seconds since the epoch.
        validate: Does the work of ``message.validate()``; None for the outbox's own.
        belongs: Takes messages that belong to some work of the process, such as the run of a
            handler, and stores them if that succeeds. It returns False for messages that belong to
            none; the outbox stores them at once.
    """

    def __init__(  # noqa: PLR0913 -- each is a value of its own
        self,
        settings: OutboxSettings | None = None,
        *,
        exchange: str = "amq.topic",
        topic_prefix: str = "",
        clock: Callable[[], float] = time.time,
        validate: Callable[[Message], None] | None = None,
        belongs: Callable[[Sequence[Entry]], bool] | None = None,
    ) -> None:
        self.settings = settings or OutboxSettings()
        self._policy = Policy.of(self.settings)
        self._exchange = exchange
        self._topic_prefix = topic_prefix
        self._clock = clock
        self._validate = validate
        self._belongs = belongs

    def rename(self, exchange: str, topic_prefix: str) -> None:
        """Use another exchange and topic prefix from now on."""
        self._exchange, self._topic_prefix = exchange, topic_prefix

    @contextlib.contextmanager
    def collect(self) -> Iterator[Pending]:
        """Collect the messages that the block publishes; :meth:`Pending.commit` stores them.

        Without a commit they are discarded.
        """
        pending = self.pending()
        with pending.collecting():
            try:
                yield pending
            finally:
                pending.close()

    def pending(self, headers: Callable[[Outgoing], Headers] | None = None) -> Pending:
        """Return a block that collects nothing yet: see :meth:`Pending.collecting`.

        Args:
            headers: Returns further headers of a message when it is stored; None for no headers.
        """
        return Pending(self, self.current(), headers)

    def current(self) -> Pending | None:
        """Return the innermost block that collects the messages of the caller, or None."""
        return _collecting.get(_NOTHING).get(self)

    def accept(self, messages: list[Entry], timeout: float = TIMEOUT) -> None:
        """Store messages that were prepared before, or add them to the block that collects.

        Raises:
            OutboxError: None of them was stored.
            NotSentError: All are stored, and one to wait for is not sent in time, or discarded.
        """
        if messages and not self._collects(messages):
            self.store_now(messages, timeout)

    async def accept_async(
        self,
        messages: list[Entry],
        timeout: float = TIMEOUT,  # noqa: ASYNC109 -- it does not cancel
    ) -> None:
        """Do the same as :meth:`accept`, without blocking the event loop."""
        if messages and not self._collects(messages):
            await self.in_thread(self.store_now, messages, timeout)

    def store_now(self, messages: list[Entry], timeout: float = TIMEOUT) -> None:
        """Store messages in one transaction, and wait for those with ``on_failure = "wait"``.

        The errors are those of :meth:`accept`.
        """
        awaited = [m.id for m, on_failure in messages if on_failure == OnFailure.WAIT.value]
        since = self._last_row() if awaited else 0
        self._put(messages)
        deadline = time.monotonic() + timeout
        for message_id in awaited:
            self._wait(message_id, since, deadline)

    @abc.abstractmethod
    def _put(self, messages: list[Entry]) -> None:
        """Insert *messages* in one transaction, and commit it."""

    @abc.abstractmethod
    def _last_row(self) -> int:
        """Return the highest id in the table, 0 if it is empty."""

    @abc.abstractmethod
    def _state_of(self, message_id: str, since: int) -> tuple[str, str] | None:
        """Return the state and the reason of the message's row after *since*, None for no row."""

    async def in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call *function*, which uses this publisher, without blocking the event loop."""
        await asyncio.to_thread(function, *arguments)

    def accept_outside(self, messages: list[Entry], timeout: float) -> None:
        """Do the same as :meth:`accept` for messages that no block collects any more."""
        if self._belongs is None or not self._belongs(messages):
            self.store_now(messages, timeout)

    def _enriched(self, entry: Entry) -> Entry:
        block = self.current()
        return entry if block is None else block.enriched(entry)

    def _collects(self, messages: list[Entry]) -> bool:
        pending = self.current()
        if pending is not None and pending.add(messages):
            return True
        return self._belongs is not None and self._belongs(messages)

    def _entry(
        self, message: Message, ordering_key: str | None, exchange: str | None
    ) -> tuple[Outgoing, str]:
        prepared = outgoing(
            message,
            exchange=self._exchange if exchange is None else exchange,
            topic_prefix=self._topic_prefix,
            ordering_key=ordering_key,
            now=self._clock(),
            max_body=self.settings.max_body,
            validate=self._validate,
        )
        return prepared, self._policy.on_failure_of(prepared.topic).value

    def _wait(self, message_id: str, since: int, deadline: float) -> None:
        pause = _FIRST_LOOK
        while (found := self._look_for(message_id, since)) is not None:
            state, reason = found
            if state == DEAD and reason == DISCARDED:
                raise NotSentError(f"message {message_id} is not sent: {reason}")
            if state == DEAD:
                raise PublishError(f"message {message_id} can never be sent: {reason}")
            if time.monotonic() >= deadline:
                last = f"; the last attempt: {reason}" if reason else ""
                raise NotSentError(f"message {message_id} is stored, and not sent yet{last}")
            time.sleep(min(pause, max(deadline - time.monotonic(), 0.0)))
            pause = min(2 * pause, _LONGEST_LOOK)

    def _look_for(self, message_id: str, since: int) -> tuple[str, str] | None:
        try:
            return self._state_of(message_id, since)
        except OutboxError as error:
            # The message is stored already, so publish() has not failed.
            return WAITING, str(error)
