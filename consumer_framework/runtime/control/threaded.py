# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves operators' requests from threads, for a process without an event loop."""

from __future__ import annotations

import logging
import os
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, TypeAlias

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
    Refusal,
    Right,
    end_of,
    page_for,
    product_version,
    read_call,
    refusal_of,
    too_long,
    unanswered,
)
from .schema import encode_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from .routes import Pages, Route
    from .schema import Request

    ByType: TypeAlias = Mapping[type[Request[Any]], Callable[[Any], Iterable[object]]]

_log = logging.getLogger(__name__)

# Seconds that a client may be silent.
_PATIENCE = 60.0


class _Exchanges(BaseHTTPRequestHandler):
    """The calls of one client, one after the other."""

    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE
    server: _Server

    def handle(self) -> None:
        try:
            if self.rfile.peek(1)[:1] == b"{":  # type: ignore[attr-defined]
                self.wfile.write(encode_answer(FORMER_PROTOCOL) + b"\n")
            else:
                super().handle()
        except OSError as error:
            _log.debug("a client of the control socket went away: %s", error)

    def do_GET(self) -> None:
        """Carry a call out."""
        try:
            self._serve(self._call())
        except OSError:
            # The client went away: nobody is left to be told.
            raise
        except Exception as error:  # noqa: BLE001 -- told to the client
            self._refuse(refusal_of(error))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Tell of a call that is none, in place of the page of http.server."""
        self.close_connection = True
        # Without a version, http.server would leave out the status.
        self.request_version = self.protocol_version
        detail = explain or message or HTTPStatus(code).phrase
        self._refuse(Refusal(code, detail, Connection="close"))

    def version_string(self) -> str:
        """Return the header ``Server``."""
        return f"consumer_framework/{product_version()}"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's name
        """Log at the level of details."""
        _log.debug(f"the control socket: {format}", *args)

    def _call(self) -> Call:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self.close_connection = True
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "name the Content-Length", Connection="close")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            what = f"Content-Length: {length!r} is no number"
            raise Refusal(HTTPStatus.BAD_REQUEST, what, Connection="close")
        if int(length) > LONGEST_REQUEST:
            self.close_connection = True
            raise too_long()
        return Call(self.command, self.path, self.rfile.read(int(length)))

    def _serve(self, call: Call) -> None:
        make = page_for(call, self.server.pages)
        if make is not None:
            page = make(self.headers.get("Accept", ""))
            self._send(page.status, page.content_type, page.body)
            return
        route, request = read_call(call)
        respond = self.server.by_type.get(type(request))
        if respond is None:
            raise unanswered(request)
        login = self.headers.get(LOGIN_HEADER, "")
        admit(operator_at(self.connection, login), route, request)
        self._answer(route, iter(respond(request)))

    def _answer(self, route: Route, answers: Iterator[object]) -> None:
        first = encode_answer(next(answers)) + b"\n"
        if not route.is_stream:
            self._send(HTTPStatus.OK, JSON, first)
            return
        self._head(HTTPStatus.OK, {"Content-Type": STREAM, "Transfer-Encoding": "chunked"})
        self._write_chunk(first)
        error = None
        try:
            for answer in answers:
                self._write_chunk(encode_answer(answer) + b"\n")
        except OSError:
            raise
        except Exception as caught:  # noqa: BLE001 -- told to the client
            error = caught
        self._write_chunk(end_of(error))
        self._write_chunk(b"")

    def _write_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _refuse(self, refusal: Refusal) -> None:
        self._send(refusal.status, PROBLEM, refusal.body, refusal.headers)

    def _send(
        self, status: int, content_type: str, body: bytes, more: Mapping[str, str] | None = None
    ) -> None:
        length = str(len(body))
        self._head(status, {"Content-Type": content_type, "Content-Length": length, **(more or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    by_type: ByType
    pages: Pages

    def __init__(self, path: str) -> None:
        super().__init__(path, _Exchanges)
        self._clients: set[Any] = set()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 -- as its base
        """Take a client, if there are not too many."""
        self._clients.add(request)
        is_limited = not operator_at(request).may(Right.ADMINISTER)
        return not is_limited or len(self._clients) <= MOST_CLIENTS

    def shutdown_request(self, request: Any) -> None:
        """Forget a client."""
        self._clients.discard(request)
        super().shutdown_request(request)


class ControlThread:
    """Listens on a control socket until it is closed.

    Args:
        path: The socket's name. One that a dead process left behind is replaced.
        by_type: The function that answers each type of request. Each client has a thread.
        pages: The pages of the process.
        mode: The mode of the socket: who may connect.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(
        self, path: Path, by_type: ByType, pages: Pages | None = None, mode: int = 0o600
    ) -> None:
        path.unlink(missing_ok=True)
        before = os.umask(0o777 & ~mode)
        try:
            self._server = _Server(str(path))
        finally:
            os.umask(before)
        self._server.by_type = by_type
        self._server.pages = {**OWN_PAGES, **(pages or {})}
        self._path = path
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="control", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)
