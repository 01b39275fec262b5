# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells the service manager that the instance does its work, and asks for a restart if not.

Says that the event loop is blocked, and by what, while it is.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

from consumer_framework.adapters.amqp import PresenceCheck
from consumer_framework.core.attempt import is_own
from consumer_framework.core.health import Facts, Sick, judge
from consumer_framework.core.lifecycle import State
from consumer_framework.core.log_fields import fields_of_all

if TYPE_CHECKING:
    from types import FrameType

    from .instance import Instance

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


# How often the service manager is told within the time that it waits (sd_watchdog_enabled(3)
# recommends at least 2).
FEEDS = 3


class Watchdog:
    """Feeds the watchdog from the event loop, for as long as the instance is not stuck.

    Where the loop itself is blocked, nothing is fed, and the service manager finds out by itself.
    Feeds nothing without a service manager that waits for it.

    Args:
        instance: What is judged.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._interval = instance.notifier.watchdog_seconds / FEEDS
        self._now = instance.clock.monotonic
        self._presence = PresenceCheck(
            instance.session, instance.reactor, self._now, self._interval
        )
        # Not one of Twisted's, which stands still when somebody sets the machine's time back.
        self._timer: asyncio.TimerHandle | None = None
        self._is_alarmed = False
        self._blocked_loop = BlockedLoop()

    def start(self) -> None:
        """Feed it from now on, and say where the event loop is blocked."""
        self._blocked_loop.start()
        if self._interval:
            self._feed()

    def _feed(self) -> None:
        self._look()
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._feed)

    def stop(self) -> None:
        """Feed it no more."""
        self._blocked_loop.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._presence.stop()

    def _look(self) -> None:
        if self._instance.state is State.BUILDING:
            # The author's constructor may block the event loop for a while. The service manager
            # begins to wait with the first word that it hears, at the latest with READY=1.
            return
        facts = self._facts()
        verdict = judge(facts, self._now())
        if isinstance(verdict, Sick):
            self._alarm(verdict.reason, facts)
        else:
            self._instance.notifier.watchdog()
            self._presence.ask()
            self._instance.lag = self._presence.lag

    def _facts(self) -> Facts:
        instance = self._instance
        return Facts(
            state=instance.state,
            news_at=instance.news_at,
            overruns=instance.executor.overruns() if instance.executor is not None else (),
            absent=self._presence.absent,
            confirm_by=self._presence.confirm_by,
        )

    def _alarm(self, reason: str, facts: Facts) -> None:
        if not self._is_alarmed:
            self._is_alarmed = True
            guilty = [delivery for run in facts.overruns for delivery in run.deliveries]
            self._instance.files.flight.charge_only(guilty)
            _log.critical(
                "stuck, and to be restarted: %s; what every thread does follows",
                reason,
                extra=fields_of_all(guilty),
            )
            _write_stacks()
        # Again, should the service manager not have taken it: it is not fed any more.
        self._instance.notifier.trigger(f"Stuck: {reason}")


def _write_stacks() -> None:
    """Write what every thread does to standard error, once.

    With ``$PYTHONFAULTHANDLER``, the service manager's SIGABRT would write it a second time.
    """
    sys.stderr.flush()
    # What stands for standard error may be no file: a test's, for one.
    faulthandler.dump_traceback(file=2, all_threads=True)
    faulthandler.disable()
