# SPDX-License-Identifier: GPL-2.0-or-later
"""Publish without an outbox: the caller waits until the broker has confirmed the message.

This is the way of ``fedora_messaging.api.publish``, with its errors. One thread sends for all
threads and coroutines of the process, over a connection of its own: messages that are published at
once share a batch. A coroutine that waits here blocks the event loop, but no longer for ever.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from fedora_messaging.exceptions import (
    ConnectionException,
    PublishException,
    PublishForbidden,
    PublishReturned,
)

from .message import outgoing
from .messengers import Reject, Retry, Scope, Sent
from .upstream import Eventual, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedora_messaging.message import Message
    from twisted.python.failure import Failure

    from .message import Outgoing
    from .messengers import Messenger, Result

# Messages of one batch.
_WINDOW = 100
# Seconds between two attempts to reach a broker.
_AGAIN = 1.0


class _Sending(NamedTuple):
    message: Outgoing
    done: Future[None]


class _Awaited(Eventual):
    """The result of one publish that goes on."""

    def __init__(self, done: Future[None]) -> None:
        self._done = done

    def wait(self, timeout: float) -> None:
        """Wait for the broker's confirmation."""
        self._done.result(timeout)

    def cancel(self) -> None:
        """Give up; a message that is on its way may arrive nevertheless."""
        self._done.cancel()

    def original_failure(self) -> Failure | None:
        """Return the error of the publish."""
        error = None if self._done.cancelled() else self._done.exception()
        return None if error is None else failure_of(error)


class SharedSender:
    """Sends messages at once, in a thread that starts with the first one.

    Args:
        messenger: Makes the messenger; called in the thread.
        exchange: Returns the exchange of messages that name none.
        topic_prefix: Returns the text before each topic.
        validate: As for an outbox.
    """

    def __init__(
        self,
        messenger: Callable[[], Messenger],
        exchange: Callable[[], str],
        topic_prefix: Callable[[], str],
        validate: Callable[[Message], None] | None = None,
    ) -> None:
        self._make = messenger
        self._exchange, self._topic_prefix = exchange, topic_prefix
        self._validate = validate
        self._queue: SimpleQueue[_Sending | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def begin(self, message: Message, exchange: str | None = None) -> Eventual:
        """Begin to send *message*; the result ends with the broker's confirmation.

        Raises:
            fedora_messaging.exceptions.ValidationError: It does not fit its schema.
            PublishError: It can never be sent.
        """
        prepared = outgoing(
            message,
            exchange=self._exchange() if exchange is None else exchange,
            topic_prefix=self._topic_prefix(),
            now=time.time(),
            validate=self._validate,
        )
        done: Future[None] = Future()
        with self._starting:
            if self._stopped.is_set():
                done.set_exception(ConnectionException(reason="the instance has stopped"))
                return _Awaited(done)
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="sender", daemon=True)
                thread.start()
                self._thread = thread
            self._queue.put(_Sending(prepared, done))
        return _Awaited(done)

    def stop(self, patience: float) -> None:
        """End the thread after the batch on its way; wait for *patience* seconds at most."""
        with self._starting:
            self._stopped.set()
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(patience)

    # In the thread.

    def _serve(self) -> None:
        messenger: Messenger | None = None
        is_open = False
        waiting: list[_Sending] = []
        while not self._stopped.is_set():
            batch = [
                one for one in [*waiting, *self._next(not waiting)] if not one.done.cancelled()
            ]
            if not batch:
                waiting = []
                continue
            try:
                messenger = messenger or self._make()
                if not is_open:
                    messenger.open()
                    is_open = True
                results = messenger.send_many([one.message for one in batch])
                if len(results) != len(batch):
                    raise ValueError(f"{len(results)} results for {len(batch)} messages")  # noqa: TRY301
            except ConnectionError as error:
                results = [Retry(str(error))] * len(batch)
            except Exception as error:  # noqa: BLE001 -- each caller must get an answer
                results = [Reject(f"{type(error).__name__}: {error}")] * len(batch)
            waiting = _settle(batch, results)
            if waiting:
                _close(messenger)
                # A reload may have changed its certificates.
                messenger, is_open = None, False
                self._stopped.wait(_AGAIN)
        _close(messenger)
        for one in [*waiting, *self._next(wait=False)]:
            _fail(one, ConnectionException(reason="the instance has stopped"))

    def _next(self, wait: bool) -> list[_Sending]:  # noqa: FBT001
        """Return the messages that are there; wait for one if *wait*."""
        batch: list[_Sending] = []
        with suppress(Empty):
            one = self._queue.get() if wait else self._queue.get_nowait()
            while one is not None and len(batch) < _WINDOW:
                batch.append(one)
                one = self._queue.get_nowait()
            if one is not None:
                batch.append(one)
        return batch


def _close(messenger: Messenger | None) -> None:
    if messenger is not None:
        with suppress(Exception):
            messenger.close()


def _settle(batch: Sequence[_Sending], results: Sequence[Result]) -> list[_Sending]:
    """Tell the callers; return the messages that wait for an endpoint."""
    waiting = []
    for one, result in zip(batch, results, strict=True):
        match result:
            case Sent():
                with suppress(InvalidStateError):
                    one.done.set_result(None)
            case Retry(scope=Scope.ENDPOINT):
                waiting.append(one)
            case Retry(reason, Scope.TOPIC):
                _fail(one, PublishForbidden(reason=reason))
            case Retry(reason):
                _fail(one, PublishReturned(reason=reason))
            case Reject(reason):
                _fail(one, PublishException(reason=reason))
    return waiting


def _fail(one: _Sending, error: Exception) -> None:
    with suppress(InvalidStateError):
        one.done.set_exception(error)
