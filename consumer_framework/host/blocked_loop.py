# SPDX-License-Identifier: GPL-2.0-or-later
"""Says that the event loop is blocked, and by what, while it is."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

from consumer_framework.core.attempt import is_own

if TYPE_CHECKING:
    from types import FrameType

_log = logging.getLogger(__name__)

# Seconds. Heartbeats of the broker are half a minute apart, and systemd's watchdog waits longer.
BLOCKED_AFTER = 10.0
_LOOK = 1.0


class BlockedLoop:
    """Watches the event loop from a thread, for nothing on the loop itself can say that it hangs.

    Where systemd restarts the instance because of it, this says why; in a terminal, nothing else
    would say anything.

    Args:
        limit: Seconds that something may block the loop for, without a warning.
        look: Seconds between two looks.
    """

    def __init__(self, limit: float = BLOCKED_AFTER, look: float = _LOOK) -> None:
        self._limit = limit
        self._look = look
        self._beat_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch the loop of this thread from now on."""
        self._beat()
        watched = threading.get_ident()
        threading.Thread(
            target=self._watch, args=(watched,), name="blocked-loop", daemon=True
        ).start()

    def stop(self) -> None:
        """Watch it no more."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(self._look, self._beat)

    def _watch(self, thread: int) -> None:
        is_told, looked_at = False, time.monotonic()
        while not self._stopped.wait(self._look):
            before, looked_at = looked_at, time.monotonic()
            # Where this thread did not run either, the whole process was stopped.
            was_awake = looked_at - before < self._look + self._limit / 2
            is_blocked = looked_at - self._beat_at > self._look + self._limit
            if is_blocked and was_awake and not is_told:
                is_told = True
                _log.warning(
                    "the event loop is blocked for %.0f s%s: nothing else runs, and the broker "
                    "hears no heartbeat; let what blocks run in a plain function, or with "
                    "asyncio.to_thread; a second signal to stop ends the process",
                    looked_at - self._beat_at,
                    _where(sys._current_frames().get(thread)),  # noqa: SLF001 -- its only name
                )
            elif is_told and not is_blocked:
                is_told = False
                _log.warning("the event loop runs again")


def _where(frame: FrameType | None) -> str:
    """What the loop's thread does, as the innermost function of the author's."""
    while frame is not None:
        code = frame.f_code
        if is_own(code.co_filename, str(frame.f_globals.get("__name__", ""))):
            return f" by {code.co_name} ({code.co_filename}, line {frame.f_lineno})"
        frame = frame.f_back
    return ""
