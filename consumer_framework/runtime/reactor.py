# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs the event loop of the process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from twisted.internet import asyncioreactor, error


def install() -> None:
    """Install Twisted's asyncio reactor; call it before anything imports the reactor.

    Raises:
        twisted.internet.error.ReactorAlreadyInstalledError: Another kind of reactor is installed.
    """
    try:
        loop = asyncio.new_event_loop()
        asyncioreactor.install(loop)  # type: ignore[no-untyped-call]
        asyncio.set_event_loop(loop)
    except error.ReactorAlreadyInstalledError:
        from twisted.internet import reactor  # noqa: PLC0415 -- importing it would install one

        loop.close()
        if not isinstance(reactor, asyncioreactor.AsyncioSelectorReactor):
            raise
    _never_go_back()


def _never_go_back() -> None:
    """Let Twisted's timers use a monotonic clock.

    Otherwise they stand still when the machine's clock is set back
    (https://github.com/twisted/twisted/issues/2424). Heartbeats, reconnection, probes and looping
    calls all ask the reactor for the time.
    """
    from twisted.internet import reactor  # noqa: PLC0415 -- as above

    timed: Any = reactor
    timed.seconds = time.monotonic
