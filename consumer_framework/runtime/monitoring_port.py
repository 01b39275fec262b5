# SPDX-License-Identifier: GPL-2.0-or-later
"""Listens on the port of ``[monitoring]``, and serves the pages of the instance.

A port that cannot be had stops no message: the instance consumes, says so in its log and its status
line, and tries again until it has the port. fedora-messaging's own command ends in that case.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet import error as twisted_error
from twisted.web import resource, server

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control.routes import Page, Pages

_log = logging.getLogger(__name__)

# Seconds between two attempts to listen.
RETRY = 10.0
# Seconds that a client may be silent.
_PATIENCE = 30.0
# The most connections in the queue of the system; monitoring systems have one each.
_BACKLOG = 16


class _Leaf(resource.Resource):
    """One page."""

    isLeaf = True  # noqa: N815 -- Twisted's name

    def __init__(self, page: Callable[[str], Page]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._page = page

    def render_GET(self, request: server.Request) -> bytes:  # noqa: N802 -- Twisted's name
        # Twisted reads UTF-8, and a client may send any bytes.
        accept: bytes = request.getHeader(b"accept") or b""
        page = self._page(accept.decode("latin-1"))
        request.setResponseCode(page.status)
        request.setHeader("Content-Type", page.content_type)  # type: ignore[no-untyped-call]
        return page.body


class _Root(resource.Resource):
    """Stands for every path that is no page, and names the pages."""

    isLeaf = False  # noqa: N815 -- Twisted's name

    def getChild(self, _path: bytes, _request: server.Request) -> _Root:  # noqa: N802 -- likewise
        return self

    def render_GET(self, request: server.Request) -> bytes:  # noqa: N802 -- likewise
        request.setResponseCode(HTTPStatus.NOT_FOUND)
        request.setHeader("Content-Type", "text/plain")  # type: ignore[no-untyped-call]
        names = b", ".join(b"/" + name for name in sorted(self.children))
        return b"The pages are " + names + b".\n"


class _Site(server.Site):
    """Twisted's server without its log line for each request."""

    noisy = False

    def log(self, _request: Any) -> None:
        """Log nothing: a monitoring system asks every few seconds."""


class MonitoringPort(Service):
    """Listens while it runs.

    Args:
        place: The address and the TCP port.
        pages: A function for each path, which takes the ``Accept`` header.
        reactor: Twisted's reactor.
        tell: Called with words for the status line when the port cannot be had; "" once it can.
    """

    def __init__(
        self,
        place: tuple[str, int],
        pages: Pages,
        reactor: Any,
        tell: Callable[[str], object],
    ) -> None:
        self._place = place
        self._reactor = reactor
        self._tell = tell
        root = _Root()  # type: ignore[no-untyped-call]
        for path, page in pages.items():
            leaf: Any = _Leaf(page)
            root.putChild(path.strip("/").encode(), leaf)
        self._site = _Site(root, timeout=_PATIENCE)  # type: ignore[no-untyped-call]
        self._port: Any = None
        self._again: Any = None
        self._trouble = ""

    def startService(self) -> None:  # noqa: N802 -- Twisted's name
        """Listen, or try again later."""
        super().startService()  # type: ignore[no-untyped-call]
        self._listen()

    def stopService(self) -> Any:  # noqa: N802 -- Twisted's name
        """Listen no longer."""
        super().stopService()  # type: ignore[no-untyped-call]
        again, self._again = self._again, None
        if again is not None:
            again.cancel()
        port, self._port = self._port, None
        return port.stopListening() if port is not None else None

    def _listen(self) -> None:
        self._again = None
        address, number = self._place
        try:
            self._port = self._reactor.listenTCP(
                number, self._site, backlog=_BACKLOG, interface=address
            )
        except (twisted_error.CannotListenError, OSError, OverflowError, ValueError) as error:
            reason = getattr(error, "socketError", error)
            self._failed(getattr(reason, "strerror", None) or str(reason))
            self._again = self._reactor.callLater(RETRY, self._listen)
        else:
            _log.info("metrics on http://%s/metrics", _url_place(address, number))
            self._trouble = ""
            self._tell("")

    def _failed(self, reason: str) -> None:
        what = f"monitoring port {_url_place(*self._place)}: cannot listen: {reason}"
        if what != self._trouble:
            _log.warning("%s; messages are handled, and it tries again", what)
        self._trouble = what
        self._tell(what)


def _url_place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
