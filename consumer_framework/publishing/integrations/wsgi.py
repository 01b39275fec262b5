# SPDX-License-Identifier: GPL-2.0-or-later
"""A WSGI middleware (PEP 3333): the response of a request decides about its messages.

::

    app.wsgi_app = OutboxMiddleware(app.wsgi_app)

A response begins with the first byte of its body, or with its end if it has none. Until then the
middleware holds the status back. So a request fails, and stores nothing, if its status is 400 or
higher, if the application raises before that byte, or if it calls ``start_response`` with the
exception of an error page. Messages that a streaming body publishes later are stored at once: a
response that has begun cannot be taken back.

The middleware does not collect messages that :meth:`.Outbox.publish` stores in the application's
own transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from consumer_framework.publishing.collecting import TIMEOUT

from .requests import Requests, is_success

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from consumer_framework.publishing.collecting import Publisher

    from .requests import Enrich, Request

__all__ = ["OutboxMiddleware"]

_T = TypeVar("_T")


class OutboxMiddleware:
    """Stores the messages that are published during a request, if the request succeeds.

    Args:
        app: The WSGI application.
        outbox: The outbox whose messages are collected; None for the one of
            :func:`consumer_framework.publishing.publish`.
        enrich: Takes the WSGI environment and a message, and returns further headers of the
            message, or None. It is called when the request has succeeded, before the message is
            stored; for a message in the application's own transaction, when it is published.
        timeout: Seconds to wait for messages with ``on_failure = "wait"``. A message that is not
            sent by then is logged, and the response is that of the application.
    """

    def __init__(
        self,
        app: WSGIApplication,
        outbox: Publisher | None = None,
        *,
        enrich: Enrich | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.app = app
        self._requests = Requests(outbox, enrich, timeout)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request.

        Raises:
            OutboxError: The messages of a request that succeeded were not stored. The response has
                not begun: the server answers 500.
        """
        response = _Response(self._requests.begin(environ), start_response)
        body = response.run(lambda: self.app(environ, response.start))
        file_wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(body, list | tuple) or _is_instance(body, file_wrapper):
            # No code of the application makes it. Servers send it faster as it is.
            return _as_it_is(body, response)
        return _Body(body, response)


def _as_it_is(body: Iterable[bytes], response: _Response) -> Iterable[bytes]:
    try:
        response.run(response.begin)
    except BaseException:
        if hasattr(body, "close"):
            body.close()
        raise
    response.end()
    return body


def _is_instance(body: Any, kind: Any) -> bool:
    return isinstance(kind, type) and isinstance(body, kind)


class _Response:
    """The beginning of one response, which the middleware holds back."""

    def __init__(self, request: Request, start_response: StartResponse) -> None:
        self._request = request
        self._start_response = start_response
        self._arguments: tuple[Any, ...] | None = None
        self._has_raised = False
        self._write: Callable[[bytes], object] | None = None
        self.has_begun = False

    def run(self, function: Callable[[], _T]) -> _T:
        """Call code of the application, collect its messages, and discard them if it raises."""
        with self._request.collecting():
            return function()

    def start(
        self, status: str, headers: Any, exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """Stand for the server's ``start_response``."""
        if self.has_begun:
            # The server raises the exception, because the response cannot be changed.
            return self._start_response(status, headers, exc_info)
        if self._arguments is not None and exc_info is None:
            raise RuntimeError("start_response was called twice")
        self._has_raised |= exc_info is not None
        self._arguments = (status, headers) if exc_info is None else (status, headers, exc_info)
        return self.write

    def write(self, data: bytes) -> None:
        """Stand for the server's ``write``, which older applications use."""
        self.begin()
        assert self._write is not None  # noqa: S101 -- start() was called, or nobody has this method
        self._write(data)

    def begin(self) -> None:
        """Decide about the messages, and let the response out."""
        if self.has_begun or self._arguments is None:
            return
        self.decide()
        self.has_begun = True
        arguments, self._arguments = self._arguments, None
        self._write = self._start_response(*arguments)

    def decide(self) -> None:
        """Store the messages if the request has succeeded."""
        if self._arguments is not None:
            status = int(self._arguments[0][:3])
            if is_success(status) and not self._has_raised:
                self._request.commit()

    def end(self) -> None:
        """Discard the messages that were not stored."""
        self._request.close()


class _Body:
    """The body of a response: the one of the application, as it makes it."""

    def __init__(self, body: Iterable[bytes], response: _Response) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._response = response

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        chunk = self._response.run(self._next)
        if chunk is None:
            raise StopIteration
        return chunk

    def _next(self) -> bytes | None:
        if self._iterator is None:
            self._iterator = iter(self._body)
        # An empty chunk lets nothing out, and the status may still change.
        for chunk in self._iterator:
            if chunk or self._response.has_begun:
                self._response.begin()
                return chunk
        self._response.begin()
        return None

    def close(self) -> None:
        """Close the application's body; a server does so at the end, however it comes."""
        try:
            self._response.run(self._close)
        finally:
            self._response.end()

    def _close(self) -> None:
        # A server need not ask for the body of an answer to HEAD.
        self._response.decide()
        if hasattr(self._body, "close"):
            self._body.close()
