# SPDX-License-Identifier: GPL-2.0-or-later
"""Pauses the instance while something that it needs is broken, and looks when it is back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import Failed, Skipped, Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Outcome
    from consumer_framework.core.limits import Breaker
    from consumer_framework.core.recovery import Decision

    from .scheduler import Scheduler

_log = logging.getLogger(__name__)

DEPENDENCY = "dependency"
STORE = "store"
ORDER = "order"

_WORKS = {
    DEPENDENCY: "the dependency works again",
    STORE: "the store works again",
    ORDER: "nothing in the store is in the way any more",
}
_IN_THE_WAY = (
    'a message is deferred or quarantined, and nothing may overtake it (ordering = "strict"); '
    "`fm-consumer quarantine list` shows it"
)


class Pauses:
    """The reasons to be paused: an open breaker, a store that cannot be written.

    Args:
        breaker: The breaker, closed.
        scheduler: Brings the delivery that an open breaker is probed with.
        reactor: Twisted's reactor, or a clock of a test's.
        pause: Called when there is a reason, and whenever it changes.
        resume: Called when there is none any more.
    """

    def __init__(
        self,
        breaker: Breaker,
        scheduler: Scheduler,
        reactor: Any,
        pause: Callable[[str], None],
        resume: Callable[[], None],
    ) -> None:
        self._breaker = breaker
        self._scheduler = scheduler
        self._reactor = reactor
        self._pause = pause
        self._resume = resume
        self._reasons: dict[str, str] = {}
        self._probe: Any = None

    def resize(self, consecutive: int, probe: tuple[float, ...]) -> None:
        """Let the dependency count as broken after other faults; one that is broken stays so."""
        self._breaker = self._breaker.resized(consecutive, probe)

    def judge(self, outcome: Outcome, decision: Decision) -> None:
        """Learn from an outcome whether the dependency works."""
        was_open = self._breaker.is_open
        if decision.dependency_fault:
            if was_open and self._probe is not None:
                # It ran beside the one that opened the breaker, and is no probe in vain.
                return
            self._breaker = self._breaker.fault()
            if self._breaker.is_open:
                reason = getattr(decision.disposition, "reason", "")
                self._break(DEPENDENCY, f"{reason}; next probe in {self._breaker.wait:.0f} s")
                self._set_probe()
        elif isinstance(outcome, Succeeded | Skipped) or (was_open and isinstance(outcome, Failed)):
            # A probe that fails of its own fault has met a dependency that works.
            self._breaker = self._breaker.success()
            if was_open:
                self._mend(DEPENDENCY)
        else:
            # If this was the probe, it has not seen the dependency.
            self.look()

    def look(self) -> None:
        """Probe again where the probe may be lost: its channel is gone."""
        if self._breaker.is_open and self._probe is None:
            self._set_probe()

    def store_failed(self, reason: str) -> None:
        """Nothing can be committed, so nothing more is taken."""
        self._break(STORE, reason)

    def store_works(self) -> None:
        """What could not be committed is committed."""
        self._mend(STORE)

    def order_is(self, *, blocked: bool) -> None:
        """Whether a message in the store may not be overtaken."""
        if blocked:
            self._break(ORDER, _IN_THE_WAY)
        else:
            self._mend(ORDER)

    def order_is_unknown(self, reason: str) -> None:
        """The store cannot be read, so that a message in it might be overtaken."""
        self._break(ORDER, f'{reason} (ordering = "strict" needs to read it)')

    def stop(self) -> None:
        """Probe no more."""
        self._stop_probe()

    def _break(self, what: str, reason: str) -> None:
        if self._reasons.get(what) == reason:
            return
        self._reasons[what] = reason
        _log.warning("paused: %s", reason)
        if what == DEPENDENCY:
            # Deferred messages go on where the store is full: that is what makes room.
            self._scheduler.pause()
        self._pause("; ".join(self._reasons.values()))

    def _mend(self, what: str) -> None:
        if self._reasons.pop(what, None) is None:
            return
        _log.info("%s", _WORKS[what])
        if DEPENDENCY not in self._reasons:
            # Also where something else is broken: a deferred message may be what stands in the way.
            self._stop_probe()
            self._scheduler.resume()
        if self._reasons:
            self._pause("; ".join(self._reasons.values()))
        else:
            self._resume()

    def _set_probe(self) -> None:
        self._stop_probe()
        self._probe = self._reactor.callLater(self._breaker.wait, self._try)

    def _try(self) -> None:
        self._probe = None
        if not self._scheduler.bring_one():
            # Everything was given back: the next message of the queue is the probe.
            self._breaker = self._breaker.success()
            self._mend(DEPENDENCY)

    def _stop_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None and probe.active():
            probe.cancel()
