# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that order a stop, or a reload of the configuration."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from consumer_framework.core.lifecycle import CUT_SHORT_GRACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_log = logging.getLogger(__name__)


class Signals:
    """Passes SIGTERM, SIGINT and SIGHUP on to the reactor's thread.

    The second order to stop ends the process after a while, even if the event loop is blocked.
    SIGHUP orders a reload, except in a process that was started in a terminal: there it means that
    the terminal is gone, and orders a stop.

    Args:
        reactor: Twisted's reactor.
        stop: Called with each signal to stop, on the reactor's thread.
        reload: Called for each order to reload, on the reactor's thread.
    """

    def __init__(
        self,
        reactor: Any,
        stop: Callable[[signal.Signals], None],
        reload: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._stop = stop
        self._reload = reload
        self._count = 0
        self._leave: Callable[[], object] | None = None
        self._timers: list[threading.Timer] = []

    def catch(self) -> None:
        """Catch the signals; call it again after the author's code, which may have caught them."""
        # loop.add_signal_handler would take the wake-up descriptor, which Twisted needs to notice
        # ended child processes.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_signal if _has_terminal() else self._on_hangup)

    def finish(self, leave: Callable[[], object]) -> None:
        """Call nothing but *leave* from now on.

        Args:
            leave: Ends the process at once; the second order to stop calls it.
        """
        # Signals are caught until the very end, and must keep nothing of the instance.
        self._leave = leave
        self._stop = self._reload = _ignore
        for timer in self._timers:
            timer.cancel()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._leave is not None:
            if self._count > 1:
                self._leave()
            _log.info("%s: stopped already; again ends the wait", signal.Signals(number).name)
            return
        if self._count > 1:
            # If the event loop is blocked, nothing else ends the process.
            timer = threading.Timer(CUT_SHORT_GRACE, os._exit, [128 + number])
            timer.daemon = True
            timer.start()
            self._timers.append(timer)
        self._reactor.callFromThread(self._stop, signal.Signals(number))

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reload)


def _ignore(_signal: object = None) -> None:
    pass


def _has_terminal() -> bool:
    return os.isatty(0)
