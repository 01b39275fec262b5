# SPDX-License-Identifier: GPL-2.0-or-later
"""Lowers slots and prefetch while memory is short, before the kernel kills the instance."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.systemd.cgroup import (
    WATCH,
    PressureWatch,
    free_memory,
)
from consumer_framework.core.gate import GateEvent
from consumer_framework.core.limits import Capacity, CapacityReduction

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.gate import Reason

    from .instance import Instance

_log = logging.getLogger(__name__)

# Seconds until deliveries that were given back are garbage.
FREE_DELAY = 0.1


class MemoryRelief:
    """Shrinks slots and prefetch of *instance* while there is memory pressure.

    Once the gate is closed, it stops watching and leaves everything as it is.

    Attributes:
        remark: The part of the status line about it; "" if memory suffices.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._reduction = CapacityReduction()
        self._watch: PressureWatch | None = None
        self._timer: Any = None
        self.remark = ""
        instance.gate.listen(self._gate_changed)

    def start(self) -> None:
        """Watch the file that systemd names in ``$MEMORY_PRESSURE_WATCH``, if any."""
        loop = asyncio.get_running_loop()
        watch = PressureWatch(_called_on(loop, self._pressed), _called_on(loop, self._lost))
        try:
            is_watching = watch.start()
        except (OSError, ValueError) as error:
            _log.warning("memory pressure is not watched for ($%s): %s", WATCH, error)
        else:
            self._watch = watch if is_watching else None

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is not GateEvent.CLOSE:
            return
        if self._watch is not None:
            self._watch.stop()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def apply(self) -> list[str]:
        """Set slots and prefetch to the values that settings and pressure allow.

        Returns:
            The queues whose prefetch count changes only with their next subscription.
        """
        full = self._full
        now = full.halved(self._reduction.times)
        is_short = bool(self._reduction.times)
        self.remark = f"memory is short: {now.slots} of {full.slots} slots" if is_short else ""
        self._instance.resize(now.slots)
        ahead = self._instance.read_ahead.bounded(now.prefetch_count)
        kept = self._instance.session.set_prefetch(ahead)
        self._instance.status.announce()
        return kept

    @property
    def _full(self) -> Capacity:
        plan = self._instance.plan
        return Capacity(plan.framework.slots, plan.prefetch_count)

    def _pressed(self) -> None:
        if self._instance.gate.is_closed or not self._reduction.press(self._full, self._now()):
            return
        self.apply()
        # Waiting deliveries come again, as far as the new count allows.
        given_back = self._instance.dispatcher.give_back_old()
        self._instance.reactor.callLater(FREE_DELAY, free_memory)
        _log.warning("memory is short: %s; %d given back", self._capacity(), given_back)
        self._set_timer()

    def _look(self) -> None:
        self._timer = None
        if self._reduction.look(self._now()):
            self.apply()
            what = "memory is less short" if self._reduction.times else "memory suffices"
            _log.info("%s: %s", what, self._capacity())
        self._set_timer()

    def _lost(self) -> None:
        if not self._instance.gate.is_closed:
            _log.warning("memory pressure is not watched for any more: $%s is gone", WATCH)

    def _set_timer(self) -> None:
        if self._timer is None and self._reduction.times:
            delay = max(self._reduction.due - self._now(), 0.0)
            self._timer = self._instance.reactor.callLater(delay, self._look)

    def _capacity(self) -> str:
        full = self._full
        now = full.halved(self._reduction.times)
        ahead = f"{now.prefetch_count or 'any number'} of {full.prefetch_count or 'any number'}"
        return f"{now.slots} of {full.slots} slots from now on, and {ahead} messages ahead"

    def _now(self) -> float:
        return self._instance.clock.monotonic()


def _called_on(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> Callable[[], None]:
    """Return a function for other threads that calls *function* on *loop*."""

    def call() -> None:
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function)

    return call
