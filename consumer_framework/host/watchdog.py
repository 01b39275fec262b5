# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells the service manager that the instance does its work, and asks for a restart if not."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
from typing import TYPE_CHECKING

from consumer_framework.adapters.amqp import Confirmation
from consumer_framework.core.fields import fields_of_all
from consumer_framework.core.lifecycle import State
from consumer_framework.core.vitality import Facts, Sick, judge

from .blocked_loop import BlockedLoop

if TYPE_CHECKING:
    from .instance import Instance

_log = logging.getLogger(__name__)

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
        self._confirmation = Confirmation(
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
        self._confirmation.stop()

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
            self._confirmation.ask()
            self._instance.lag = self._confirmation.lag

    def _facts(self) -> Facts:
        instance = self._instance
        return Facts(
            state=instance.state,
            news_at=instance.news_at,
            overruns=instance.executor.overruns() if instance.executor is not None else (),
            absent=self._confirmation.absent,
            confirm_by=self._confirmation.confirm_by,
        )

    def _alarm(self, reason: str, facts: Facts) -> None:
        if not self._is_alarmed:
            self._is_alarmed = True
            guilty = [delivery for run in facts.overruns for delivery in run.deliveries]
            self._instance.stores.flight.spare(guilty)
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
