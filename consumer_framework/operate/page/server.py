# SPDX-License-Identifier: GPL-2.0-or-later
"""Listens for browsers until nobody uses the page any more."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall

from consumer_framework.core.errors import FrameworkError

from .access import Access
from .calls import Calls, directory_of_page
from .programs import Programs
from .site import LOGIN, PageSite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOOPBACK = "127.0.0.1"
# Seconds between two looks at the clock.
_LOOK = 1.0
# Bytes of a socket's name (unix(7)).
_LONGEST_NAME = 107


class ListenError(FrameworkError):
    """The server cannot listen where it was told to.

    Args:
        message: One line with a cure.
    """

    exit_code = 1


def serve(
    where: int | Path, idle: float, announce: Callable[[str], None], reactor: Any = None
) -> None:
    """Serve the page until a signal comes, or nobody has used it for a while.

    Args:
        where: A port of loopback, 0 for a free one; or the name of a unix socket.
        idle: Seconds without a request and without a running command, after which it ends.
        announce: Called with the address, once the server listens.
        reactor: Twisted's reactor on asyncio; None for the installed one.

    Raises:
        ListenError: It cannot listen there.
    """
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415
    directory = directory_of_page()
    access, programs = Access(), Programs()
    site = PageSite(directory, Calls.of(directory), programs, access, reactor.seconds)
    address = _listen(reactor, where, site)

    def look() -> None:
        if not programs and reactor.seconds() - site.used_at >= idle:
            reactor.stop()

    def started() -> None:
        announce(f"http://{address}{LOGIN}?token={access.token}")
        LoopingCall(look).start(_LOOK)

    reactor.callWhenRunning(started)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: _stopped(programs))
    reactor.run()


def _listen(reactor: Any, where: int | Path, site: PageSite) -> str:
    """Listen, and return the host and port of the address."""
    try:
        if isinstance(where, int):
            listening = reactor.listenTCP(where, site, interface=_LOOPBACK)
            return f"{_LOOPBACK}:{listening.getHost().port}"
        _make_room(where)
        before = os.umask(0o177)
        try:
            reactor.listenUNIX(str(where), site, mode=0o600)
        finally:
            os.umask(before)
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or error.socketError
        cure = "choose another --port" if isinstance(where, int) else "choose another --socket"
        raise ListenError(f"{where}: cannot listen there: {reason}; {cure}") from error
    return "localhost:PORT"


def _make_room(path: Path) -> None:
    """Remove a socket that a dead server left behind."""
    if len(os.fsencode(path)) > _LONGEST_NAME:
        raise ListenError(f"{path}: its name is longer than {_LONGEST_NAME} bytes (unix(7))")
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"{path}: {error.strerror}; choose another --socket") from error
    if not is_socket:
        raise ListenError(f"{path}: this is no socket; remove it, or choose another --socket")
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(str(path)) == 0:
            raise ListenError(f"{path}: another server listens there; choose another --socket")
    path.unlink()


def _stopped(programs: Programs) -> Any:
    from twisted.internet.defer import Deferred  # noqa: PLC0415 -- it imports the reactor

    return Deferred.fromFuture(asyncio.ensure_future(programs.stop()))
