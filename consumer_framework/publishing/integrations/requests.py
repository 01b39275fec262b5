# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a request: the rule that the middleware of all frameworks share."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from consumer_framework.publishing.collecting import Headers
from consumer_framework.publishing.message import NotSentError, Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.publishing.collecting import Pending, Publisher

_log = logging.getLogger(__name__)

# Takes the request as its framework has it, and a message. Returns further headers of the message.
Enrich: TypeAlias = Callable[[Any, Outgoing], Headers]

# The first status that is no success (RFC 9110, section 15).
_FIRST_FAILURE = 400


def is_success(status: int) -> bool:
    """Return true if a response with *status* tells the client that its request succeeded."""
    return status < _FIRST_FAILURE


def commit(pending: Pending, timeout: float) -> None:
    """Store the messages of a request that succeeded, in one transaction.

    A message with ``on_failure = "wait"`` that is not sent in *timeout* seconds is a warning: it is
    stored, and the request did succeed.

    Raises:
        OutboxError: None of them was stored.
        PublishError: A header that was to be added cannot be sent. None was stored.
    """
    try:
        pending.commit(timeout)
    except NotSentError as error:
        _log.warning("the response does not wait any longer: %s", error)


class Requests:
    """The requests of one application whose framework has no transactions.

    Args:
        outbox: The outbox whose messages are collected; None for the default one.
        enrich: Returns further headers of a message; None for no headers.
        timeout: Seconds to wait for messages with ``on_failure = "wait"``.
    """

    def __init__(self, outbox: Publisher | None, enrich: Enrich | None, timeout: float) -> None:
        self._outbox = outbox
        self.enrich = enrich
        self.timeout = timeout

    def begin(self, request: Any) -> Request:
        """Return the messages of *request*, which its framework has as this object."""
        # Late: the configuration is read, and the database opened, for the first request.
        from consumer_framework.publishing.outbox import default  # noqa: PLC0415

        return Request(self, request, self._outbox or default())


class Request:
    """The messages of one request."""

    def __init__(self, requests: Requests, request: Any, outbox: Publisher) -> None:
        self._requests = requests
        self._request = request
        self._outbox = outbox
        self._pending = outbox.pending(self._headers)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect the messages of the block; discard them if it raises."""
        with self._pending.collecting():
            try:
                yield
            except BaseException:
                self._pending.close()
                self._pending.messages = []
                raise

    def commit(self) -> None:
        """Store the messages; later ones are stored at once. See :func:`commit`."""
        commit(self._pending, self._requests.timeout)

    async def commit_async(self) -> None:
        """Do the same as :meth:`commit`, without blocking the event loop."""
        await self._outbox.in_thread(self.commit)

    def close(self) -> None:
        """Collect no more: later messages are stored at once."""
        self._pending.close()

    def _headers(self, message: Outgoing) -> Headers:
        enrich = self._requests.enrich
        return None if enrich is None else enrich(self._request, message)
