# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves operators' requests on the control socket of a running instance, with Twisted's HTTP.

Each connection carries out one call at a time. A call has to arrive whole within
:data:`PATIENCE` seconds, so that a client that sends a byte now and then holds no connection. A
stream of answers is asked for its next one only while the client reads.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from twisted.internet.protocol import Factory
from twisted.web import http

from .openapi import OWN_PAGES
from .operators import LOGIN_HEADER, admit, operator_at
from .routes import (
    FORMER_PROTOCOL,
    JSON,
    LONGEST_REQUEST,
    MOST_CLIENTS,
    PROBLEM,
    STREAM,
    Call,
    Right,
    end_of,
    page_for,
    product_version,
    read_call,
    refusal_of,
    too_long,
    too_many,
    unanswered,
)
from .schema import encode_answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from .operators import Operator
    from .routes import Pages, Refusal, Route
    from .schema import Request

    ByType: TypeAlias = Mapping[type[Request[Any]], Callable[[Any], AsyncIterator[object]]]

# Twisted's have no types.
_HTTPChannel: Any = http.HTTPChannel
_HTTPRequest: Any = http.Request

# Seconds that a call may take to arrive, and that a connection may be idle between two calls.
PATIENCE = 60.0


class ControlFactory(Factory):
    """Makes the protocol of each client.

    Args:
        by_type: The function that answers each type of request.
        pages: The pages of the process.
        operator_of: Returns the operator at the other end of a transport, who claims a login.
    """

    noisy = False

    def __init__(
        self,
        by_type: ByType,
        pages: Pages | None = None,
        operator_of: Callable[[Any, str], Operator] = lambda transport, login: operator_at(
            transport.getHandle(), login
        ),
    ) -> None:
        self._by_type = by_type
        self._pages = {**OWN_PAGES, **(pages or {})}
        self._operator_of = operator_of
        self._clients: set[Any] = set()

    def buildProtocol(self, _addr: Any) -> _Channel:  # noqa: N802 -- Twisted's name
        """Make the protocol of a new client."""
        return _Channel(self._by_type, self._pages, self._operator_of, self._clients)


class _Channel(_HTTPChannel):  # type: ignore[misc]
    """One client."""

    timeOut = PATIENCE  # noqa: N815 -- Twisted's name

    def __init__(
        self,
        by_type: ByType,
        pages: Pages,
        operator_of: Callable[[Any, str], Operator],
        clients: set[Any],
    ) -> None:
        super().__init__()
        self._clients = clients
        self.by_type = by_type
        self.pages = pages
        self.operator_of = operator_of
        self.requestFactory = _Exchange
        self.is_given_up = False
        self._is_begun = False

    def connectionMade(self) -> None:  # noqa: N802 -- Twisted's name
        """Take the client, if there are not too many."""
        super().connectionMade()
        self._clients.add(self)
        is_limited = not self.operator_of(self.transport, "").may(Right.ADMINISTER)
        if is_limited and len(self._clients) > MOST_CLIENTS:
            self.give_up(_text_of(too_many()))

    def connectionLost(self, reason: Any) -> None:  # noqa: N802 -- Twisted's name
        """Forget the client."""
        self._clients.discard(self)
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 -- Twisted's name
        """Read a part of a call."""
        if not self._is_begun:
            self._is_begun = True
            if data.startswith(b"{"):
                self.give_up(encode_answer(FORMER_PROTOCOL) + b"\n")
        if not self.is_given_up:
            super().dataReceived(data)

    def resetTimeout(self) -> None:  # noqa: N802 -- Twisted's name
        """Go on counting: a byte now and then must not prolong the call."""

    def timeoutConnection(self) -> None:  # noqa: N802 -- Twisted's name
        """Hang up."""
        self.transport.abortConnection()

    def give_up(self, last_words: bytes) -> None:
        """Say *last_words*, hang up, and read no more."""
        self.is_given_up = True
        self.transport.write(last_words)
        self.transport.loseConnection()


class _Flow:
    """Knows whether a client reads what it gets: a push producer of Twisted."""

    def __init__(self) -> None:
        self._reads = asyncio.Event()
        self._reads.set()

    async def wait(self) -> None:
        await self._reads.wait()

    def pauseProducing(self) -> None:  # noqa: N802 -- Twisted's name
        self._reads.clear()

    def resumeProducing(self) -> None:  # noqa: N802 -- Twisted's name
        self._reads.set()

    def stopProducing(self) -> None:  # noqa: N802 -- Twisted's name
        self._reads.set()


class _Exchange(_HTTPRequest):  # type: ignore[misc]
    """One call and its response."""

    _task: asyncio.Task[None] | None = None

    def gotLength(self, length: int | None) -> None:  # noqa: N802 -- Twisted's name
        """Make room for the body, in memory."""
        self.content = BytesIO()
        if length is not None and length > LONGEST_REQUEST:
            self._give_up(too_long())

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802 -- Twisted's name
        """Take a part of the body."""
        if self.content.tell() + len(data) > LONGEST_REQUEST:
            self._give_up(too_long())
        elif not self.channel.is_given_up:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802
        """Carry the call out; called once it has arrived whole."""
        self.method, self.uri, self.clientproto = command, path, version
        if self.channel.is_given_up:
            return
        body = self.content.getvalue()
        call = Call(command.decode("latin-1"), path.decode("latin-1"), body)
        self.setHeader("Server", f"consumer_framework/{product_version()}")
        self._task = asyncio.get_running_loop().create_task(self._serve(call))

    def connectionLost(self, reason: Any) -> None:  # noqa: N802 -- Twisted's name
        """Stop answering; a row that is in a replay is run to its end."""
        if self._task is not None:
            self._task.cancel()
        super().connectionLost(reason)

    def _give_up(self, refusal: Refusal) -> None:
        if not self.channel.is_given_up:
            self.channel.give_up(_text_of(refusal))

    async def _serve(self, call: Call) -> None:
        try:
            make = page_for(call, self.channel.pages)
            if make is not None:
                page = make(self._header("Accept"))
                self._send(page.status, page.content_type, page.body)
                return
            route, request = read_call(call)
            respond = self.channel.by_type.get(type(request))
            if respond is None:
                raise unanswered(request)  # noqa: TRY301 -- one way to tell of a failure
            login = self._header(LOGIN_HEADER)
            admit(self.channel.operator_of(self.channel.transport, login), route, request)
            answers = cast("AsyncGenerator[object, None]", respond(request))
            async with aclosing(answers):
                await self._answer(route, answers)
        except Exception as error:  # noqa: BLE001 -- told to the client
            self._refuse(refusal_of(error))

    async def _answer(self, route: Route, answers: AsyncGenerator[object, None]) -> None:
        first = await anext(answers)
        if not route.is_stream:
            self._send(http.OK, JSON, encode_answer(first) + b"\n")
            return
        flow = _Flow()
        self.setHeader("Content-Type", STREAM)
        self.registerProducer(flow, True)  # noqa: FBT003 -- Twisted's
        self._write_line(first)
        error = None
        try:
            while True:
                await flow.wait()
                self._write_line(await anext(answers))
        except StopAsyncIteration:
            pass
        except Exception as caught:  # noqa: BLE001 -- told to the client
            error = caught
        self.write(end_of(error))
        self.unregisterProducer()
        self.finish()

    def _header(self, name: str) -> str:
        # Twisted reads UTF-8, and a client may send any bytes.
        return str(self.getHeader(name.encode()) or b"", "latin-1")

    def _write_line(self, answer: object) -> None:
        self.write(encode_answer(answer) + b"\n")

    def _refuse(self, refusal: Refusal) -> None:
        for name, value in refusal.headers.items():
            self.setHeader(name, value)
        self._send(refusal.status, PROBLEM, refusal.body)

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.setResponseCode(status)
        self.setHeader("Content-Type", content_type)
        self.setHeader("Content-Length", str(len(body)))
        self.write(body)
        self.finish()


def _text_of(refusal: Refusal) -> bytes:
    """Return a whole response that ends the connection."""
    head = f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}\r\n"
    lines = {"Content-Type": PROBLEM, "Content-Length": str(len(refusal.body)), **refusal.headers}
    return (
        head + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    ).encode() + refusal.body
