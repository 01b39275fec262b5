# SPDX-License-Identifier: GPL-2.0-or-later
"""An ASGI middleware: the response of a request decides about its messages.

::

    app = Starlette(..., middleware=[Middleware(OutboxMiddleware)])

A response begins with the first part of its body. Until then the middleware holds the status back.
So a request fails, and stores nothing, if its status is 400 or higher, or if the application raises
before. Messages that a streaming body or a background task publishes later are stored at once: a
response that has begun cannot be taken back. Messages after a response of failure are discarded
until the application has ended.

Websockets and the lifespan have no response: their messages are stored at once. The event loop is
that of asyncio. The middleware does not collect messages that :meth:`.Outbox.publish_async` stores
in the application's own transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from consumer_framework.publishing.collecting import TIMEOUT

from .requests import Requests, is_success

if TYPE_CHECKING:
    from consumer_framework.publishing.collecting import Publisher

    from .requests import Enrich, Request

__all__ = ["OutboxMiddleware"]

_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
_App: TypeAlias = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

# These parts of a response come before its status or without effect on it.
_BEFORE = frozenset({"http.response.debug", "http.response.early_hint"})


class OutboxMiddleware:
    """Stores the messages that are published during a request, if the request succeeds.

    Args:
        app: The ASGI application.
        outbox: The outbox whose messages are collected; None for the one of
            :func:`consumer_framework.publishing.publish`.
        enrich: Takes the scope of the request and a message, and returns further headers of the
            message, or None. It is called in a thread when the request has succeeded, before the
            message is stored; for a message in the application's own transaction, in the event loop
            when it is published.
        timeout: Seconds to wait for messages with ``on_failure = "wait"``. A message that is not
            sent by then is logged, and the response is that of the application.
    """

    def __init__(
        self,
        app: _App,
        outbox: Publisher | None = None,
        *,
        enrich: Enrich | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.app = app
        self._requests = Requests(outbox, enrich, timeout)

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        """Serve one connection.

        Raises:
            OutboxError: The messages of a request that succeeded were not stored. The response has
                not begun: the server answers 500.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = self._requests.begin(scope)
        response = _Response(request, send)
        try:
            with request.collecting():
                await self.app(scope, receive, response.send)
                await response.end()
        finally:
            request.close()


class _Response:
    """One response, whose beginning the middleware holds back."""

    def __init__(self, request: Request, send: _Send) -> None:
        self._request = request
        self._send = send
        self._start: _Message | None = None
        self._error: Exception | None = None

    async def send(self, message: _Message) -> None:
        """Stand for the server's ``send``."""
        self._raise_again()
        if message["type"] == "http.response.start" and self._start is None:
            self._start = message
            return
        if message["type"] not in _BEFORE:
            await self._begin()
        await self._send(message)

    async def end(self) -> None:
        """Let out a response without a body; raise an error that the application hid."""
        self._raise_again()
        await self._begin()

    async def _begin(self) -> None:
        """Decide about the messages, and let the beginning out."""
        if not self._start:
            return
        start, self._start = self._start, {}
        if is_success(start["status"]):
            try:
                await self._request.commit_async()
            except Exception as error:
                self._error = error
                raise
        await self._send(start)

    def _raise_again(self) -> None:
        if self._error is not None:
            raise self._error
