# SPDX-License-Identifier: GPL-2.0-or-later
"""The middleware: the response of a request decides about the messages of its view.

=========================== ====================================================================
published                   stored
=========================== ====================================================================
outside a transaction       when the request has succeeded
in the transaction of a     with it, if the request has succeeded; the middleware puts the
request                     transaction around the view, and takes the messages of a request that
(``ATOMIC_REQUESTS``)       failed out of it
in an own ``atomic`` block  with it: the block commits before there is a response
=========================== ====================================================================

A request has succeeded if the status of its response is below 400, its view did not raise, and the
response has no true ``exception``, which Django REST framework sets. A middleware further down the
list may turn an exception into a response: then this response counts.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.db import connections

from consumer_framework.publishing.collecting import TIMEOUT
from consumer_framework.publishing.integrations.requests import is_success

from .outbox import RequestBlock, outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from consumer_framework.publishing.message import Outgoing

__all__ = ["OutboxMiddleware"]


class OutboxMiddleware:
    """Stores the messages that are published during a request, if the request succeeds.

    It stands first in ``MIDDLEWARE``, so that the response of the whole project decides.

    Attributes:
        timeout: Seconds to wait for messages with ``on_failure = "wait"``. A message that is not
            sent by then is logged, and the response is that of the view.
    """

    sync_capable = True
    async_capable = True
    timeout = TIMEOUT

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._is_async = bool(iscoroutinefunction(get_response))
        if self._is_async:
            markcoroutinefunction(self)

    def enrich(self, request: Any, message: Outgoing) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Return further headers of *message*, such as the author of the change.

        A subclass overrides it. It is called when the request has succeeded, before the message is
        stored; for a message in an ``atomic`` block of the view, when it is published.

        Args:
            request: The request, as the view left it.
            message: The message. Its body is not changed.

        Returns:
            Names and values that JSON can hold; None for none.
        """
        return None

    def __call__(self, request: Any) -> Any:
        """Answer *request*; return a coroutine where the server is asynchronous."""
        if self._is_async:
            return self._answer_async(request)
        blocks = self._begin(request)
        try:
            with blocks.collecting():
                response = self.get_response(request)
        except BaseException as error:
            blocks.abandon(error)
            raise
        blocks.finish(response)
        return response

    async def _answer_async(self, request: Any) -> Any:
        blocks = self._begin(request)
        try:
            with blocks.collecting():
                answer: Awaitable[Any] = self.get_response(request)
                response = await answer
        except BaseException as error:
            await sync_to_async(blocks.abandon, thread_sensitive=True)(error)
            raise
        await sync_to_async(blocks.finish, thread_sensitive=True)(response)
        return response

    def _begin(self, request: Any) -> _Blocks:
        blocks = request._fm_outbox = _Blocks(self, request)  # noqa: SLF001 -- the name is ours
        return blocks

    def process_view(self, request: Any, view: Any, _args: Any, _kwargs: Any) -> None:
        """Begin the transaction of the request where the settings ask for one."""
        request._fm_outbox.begin(view)  # noqa: SLF001

    def process_exception(self, request: Any, _error: Exception) -> None:
        """Remember that the view raised, whatever response is made of it."""
        request._fm_outbox.has_raised = True  # noqa: SLF001


class _Blocks:
    """The messages of one request: a block for each database."""

    def __init__(self, middleware: OutboxMiddleware, request: Any) -> None:
        self.has_raised = False
        self._transactions = contextlib.ExitStack()

        def enrich(message: Outgoing) -> Mapping[str, Any] | None:
            return middleware.enrich(request, message)

        self._blocks = [
            RequestBlock(outbox(alias), enrich, middleware.timeout) for alias in connections
        ]

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(block.collecting())
            yield

    def begin(self, view: Any) -> None:
        """Begin the transactions that Django would begin around *view*."""
        non_atomic = getattr(view, "_non_atomic_requests", ())
        if iscoroutinefunction(view):
            # Django refuses it with an explanation.
            return
        for block in self._blocks:
            alias = block.outbox.using
            if connections.settings[alias]["ATOMIC_REQUESTS"] and alias not in non_atomic:
                self._transactions.enter_context(block.atomic())

    def finish(self, response: Any) -> None:
        """Store the messages, or discard them, as *response* says."""
        has_raised = self.has_raised or getattr(response, "exception", False)
        succeeded = is_success(response.status_code) and not has_raised
        with self._transactions:
            for block in self._blocks:
                block.finish(succeeded=succeeded)

    def abandon(self, error: BaseException) -> None:
        """Discard the messages and roll the transactions back."""
        for block in self._blocks:
            block.close()
        self._transactions.__exit__(type(error), error, error.__traceback__)
