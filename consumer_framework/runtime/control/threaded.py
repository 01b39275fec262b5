# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves operators' requests from threads, for a process without an event loop."""

from __future__ import annotations

import logging
import os
import socketserver
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from .schema import Done, ProtocolError, decode_request, encode_answer, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from .schema import Request

    ByType: TypeAlias = Mapping[type[Request[Any]], Callable[[Any], Iterable[object]]]

_log = logging.getLogger(__name__)

# Bytes. The longest request has the text of a configuration file.
LONGEST_REQUEST = 1 << 20
# Seconds that a client may be silent.
_PATIENCE = 60.0


class _Client(socketserver.StreamRequestHandler):
    timeout = _PATIENCE
    server: _Server

    def handle(self) -> None:
        try:
            while line := self.rfile.readline(LONGEST_REQUEST):
                self._serve(line)
        except OSError as error:
            _log.debug("a client of the control socket went away: %s", error)

    def _serve(self, line: bytes) -> None:
        try:
            for answer in self._answers(decode_request(line)):
                self._send(answer)
        except ProtocolError as error:
            self._send(Done(error=str(error)))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 -- told to the client
            _log.exception("a request on the control socket failed")
            self._send(Done(error=f"{type(error).__name__}: {error}"))
        else:
            self._send(Done())

    def _answers(self, request: Request[Any]) -> Iterable[object]:
        respond = self.server.by_type.get(type(request))
        if respond is None:
            raise ProtocolError(f"no such request: {name_of(type(request))!r}")
        return respond(request)

    def _send(self, answer: object) -> None:
        self.wfile.write(encode_answer(answer) + b"\n")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    by_type: ByType


class ControlThread:
    """Listens on a control socket until it is closed.

    Args:
        path: The socket's name. One that a dead process left behind is replaced.
        by_type: The function that answers each type of request. Each client has a thread.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(self, path: Path, by_type: ByType) -> None:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = _Server(str(path), _Client)
        finally:
            os.umask(before)
        self._server.by_type = by_type
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
