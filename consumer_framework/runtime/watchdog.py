# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches that the instance does its work, and tells the service manager.

Two watches complement each other. :class:`Watchdog` runs on the event loop and judges the instance:
while that is well, it feeds the service manager's watchdog; otherwise it asks for a restart.
:class:`BlockedLoop` runs in a thread and warns when the event loop itself is blocked. Then nothing
feeds the service manager, which restarts the instance by itself, and the warning says why.
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
from consumer_framework.core.health import HealthFacts, Unhealthy, judge
from consumer_framework.core.lifecycle import State
from consumer_framework.core.log_fields import fields_of_all

if TYPE_CHECKING:
    from types import FrameType

    from consumer_framework.core.health import Verdict

    from .instance import Instance

_log = logging.getLogger(__name__)

# How often the service manager is told within the time that it waits (sd_watchdog_enabled(3)
# recommends at least 2).
FEEDS = 3
# Seconds that the loop may be blocked without a warning. Heartbeats of the broker are half a minute
# apart, and systemd's watchdog waits longer.
BLOCKED_AFTER = 10.0
# Seconds; a silence is remembered for once to twice as long.
SILENCE_WINDOW = 300.0
# Seconds between two checks of the loop.
_CHECK_INTERVAL = 1.0
# Seconds between two judgements where the service manager waits for nothing.
UNWATCHED_INTERVAL = 10.0


class Watchdog:
    """Feeds the watchdog of the service manager for as long as the instance is not stuck.

    If the service manager waits for nothing, it judges the instance all the same, for operators.

    Args:
        instance: The instance to judge.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._is_awaited = instance.notifier.watchdog_seconds > 0
        self._interval = instance.notifier.watchdog_seconds / FEEDS or UNWATCHED_INTERVAL
        self._now = instance.clock.monotonic
        self._presence = PresenceCheck(
            instance.session, instance.reactor, self._now, self._interval
        )
        # Twisted's timers stand still when the machine's clock is set back.
        self._timer: asyncio.TimerHandle | None = None
        self._is_alarmed = False
        self._silence = Silence()
        self._blocked_loop = BlockedLoop()

    def start(self) -> None:
        """Start both watches; call it on the event loop."""
        self._blocked_loop.start()
        self._feed()

    def stop(self) -> None:
        """Stop both watches."""
        self._blocked_loop.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._presence.stop()

    def verdict(self) -> Verdict:
        """Judge the instance as it is now."""
        return judge(self._facts(), self._now())

    @property
    def margin(self) -> float | None:
        """Seconds by which the longest recent silence was shorter than the service manager waits.

        None if it waits for nothing, or was not fed yet.
        """
        longest = self._silence.longest(self._now())
        if not self._is_awaited or longest is None:
            return None
        return self._instance.notifier.watchdog_seconds - longest

    def _feed(self) -> None:
        try:
            self._check()
        finally:
            # A defect in a look at the instance must not let the service manager abort it.
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._feed)

    def _check(self) -> None:
        if self._instance.state is State.BUILDING:
            # The author's constructor may block the event loop for a while. The service manager
            # begins to wait with the first word that it hears, at the latest with READY=1.
            return
        facts = self._facts()
        verdict = judge(facts, self._now())
        health, former = self._instance.health, self._instance.health.stuck
        health.stuck = verdict.reason if isinstance(verdict, Unhealthy) else ""
        if health.stuck and self._is_awaited:
            self._alarm(health.stuck, facts)
            return
        if health.stuck and not former:
            _log.error("stuck, and nothing restarts it: %s", health.stuck)
        if self._is_awaited:
            self._instance.notifier.watchdog()
            self._silence.end(self._now())
        self._presence.ask()
        health.samples = self._presence.samples
        health.look()

    def _facts(self) -> HealthFacts:
        instance = self._instance
        return HealthFacts(
            state=instance.state,
            progress_at=instance.progress_at,
            overruns=instance.executor.overruns() if instance.executor is not None else (),
            absent=self._presence.absent,
            confirm_by=self._presence.confirm_by,
            relay_is_stuck=instance.publications.is_stuck,
        )

    def _alarm(self, reason: str, facts: HealthFacts) -> None:
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
        # Repeated each time, in case the service manager missed it: nothing feeds it any more.
        self._instance.notifier.trigger(f"Stuck: {reason}")


class Silence:
    """The time between one word to the service manager and the next."""

    def __init__(self) -> None:
        self._ended_at: float | None = None
        self._window_began = 0.0
        # The longest of this window, and of the one before it.
        self._longest = self._longest_before = 0.0

    def end(self, now: float) -> None:
        """Note that a word was said at *now*, in monotonic seconds."""
        if self._ended_at is None:
            self._window_began = now
        else:
            self._longest = max(self._longest, now - self._ended_at)
        self._ended_at = now
        if now - self._window_began >= SILENCE_WINDOW:
            self._longest_before, self._longest = self._longest, 0.0
            self._window_began = now

    def longest(self, now: float) -> float | None:
        """Return the longest silence of the last minutes, in seconds; None before the first word.

        A silence that is under way counts as well.
        """
        if self._ended_at is None:
            return None
        return max(self._longest_before, self._longest, now - self._ended_at)


def _write_stacks() -> None:
    """Write the stack of every thread to standard error, once.

    With ``$PYTHONFAULTHANDLER``, the service manager's SIGABRT would write it a second time.
    """
    sys.stderr.flush()
    # sys.stderr may be no file, as in a test.
    faulthandler.dump_traceback(file=2, all_threads=True)
    faulthandler.disable()


class BlockedLoop:
    """Watches the event loop from a thread, because nothing on a blocked loop can report it.

    Args:
        limit: Seconds that the loop may be blocked without a warning.
        interval: Seconds between two checks.
    """

    def __init__(self, limit: float = BLOCKED_AFTER, interval: float = _CHECK_INTERVAL) -> None:
        self._limit = limit
        self._interval = interval
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
        """Stop watching."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def _watch(self, thread: int) -> None:
        is_told, checked_at = False, time.monotonic()
        while not self._stopped.wait(self._interval):
            before, checked_at = checked_at, time.monotonic()
            # If this thread did not run either, the whole process was stopped.
            was_awake = checked_at - before < self._interval + self._limit / 2
            is_blocked = checked_at - self._beat_at > self._interval + self._limit
            if is_blocked and was_awake and not is_told:
                is_told = True
                _log.warning(
                    "the event loop is blocked for %.0f s%s: nothing else runs, and the broker "
                    "hears no heartbeat; let what blocks run in a plain function, or with "
                    "asyncio.to_thread; a second signal to stop ends the process",
                    checked_at - self._beat_at,
                    _author_frame(sys._current_frames().get(thread)),  # noqa: SLF001 -- its only name
                )
            elif is_told and not is_blocked:
                is_told = False
                _log.warning("the event loop runs again")


def _author_frame(frame: FrameType | None) -> str:
    """Name the innermost function of the author's in *frame* and its callers; "" for none."""
    while frame is not None:
        code = frame.f_code
        if is_own(code.co_filename, str(frame.f_globals.get("__name__", ""))):
            return f" by {code.co_name} ({code.co_filename}, line {frame.f_lineno})"
        frame = frame.f_back
    return ""
