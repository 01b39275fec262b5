# SPDX-License-Identifier: GPL-2.0-or-later
"""Pauses the instance while a thing that it needs is broken, and finds out when it works again.

There are three reasons: an open breaker; a store that cannot be written; and, with strict order, a
message in the store that goes before all others. Besides, an operator may order a pause. Each of
them suspends the gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import Failed, Routed, Skipped, Succeeded
from consumer_framework.core.gate import Reason
from consumer_framework.core.ports import Paused

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Outcome
    from consumer_framework.core.gate import Gate, GateEvent
    from consumer_framework.core.limits import Breaker
    from consumer_framework.core.ports import Observer
    from consumer_framework.core.recovery import Decision

    from .scheduler import Scheduler

_IN_THE_WAY = (
    'a message is deferred or quarantined, and nothing may overtake it (ordering = "strict"); '
    "`fm-consumer quarantine list` shows it"
)


class Pauses:
    """Suspends the gate for the three reasons, and resumes it.

    Args:
        breaker: The breaker, closed.
        scheduler: Brings the delivery that probes an open breaker.
        reactor: Twisted's reactor, or a clock of a test's.
        gate: The gate of the instance.
        observer: Told of each pause, and of its end.
    """

    def __init__(
        self,
        breaker: Breaker,
        scheduler: Scheduler,
        reactor: Any,
        gate: Gate,
        observer: Observer,
    ) -> None:
        self._breaker = breaker
        self._scheduler = scheduler
        self._reactor = reactor
        self._gate = gate
        self._observer = observer
        self._probe: Any = None
        gate.listen(self._gate_changed)

    def resize(self, consecutive: int, probe: tuple[float, ...]) -> None:
        """Change the breaker's thresholds; an open breaker stays open."""
        self._breaker = self._breaker.resized(consecutive, probe)

    def judge(self, outcome: Outcome, decision: Decision) -> None:
        """Update the breaker after an outcome."""
        was_open = self._breaker.is_open
        if decision.dependency_fault:
            if was_open and self._probe is not None:
                # It ran beside the delivery that opened the breaker, and was no probe.
                return
            self._breaker = self._breaker.fault()
            if self._breaker.is_open:
                reason = decision.disposition.reason
                self._break(
                    Reason.DEPENDENCY, f"{reason}; next probe in {self._breaker.wait:.0f} s"
                )
                self._set_probe()
        elif isinstance(outcome, Succeeded | Skipped) or _met(outcome, was_open):
            self._breaker = self._breaker.success()
            if was_open:
                self._mend(Reason.DEPENDENCY)
        else:
            # If this was the probe, it did not meet the dependency.
            self.probe_again()

    def probe_again(self) -> None:
        """Plan another probe if the last one may be lost, as with its channel."""
        if self._breaker.is_open and self._probe is None:
            self._set_probe()

    def store_failed(self, reason: str) -> None:
        """Pause, because nothing can be committed."""
        self._break(Reason.STORE, reason)

    def store_works(self) -> None:
        """End that pause: every commit that failed has succeeded."""
        self._mend(Reason.STORE)

    def order_is(self, *, blocked: bool) -> None:
        """Pause, or end the pause, because a message in the store must not be overtaken."""
        if blocked:
            self._break(Reason.ORDER, _IN_THE_WAY)
        else:
            self._mend(Reason.ORDER)

    def order_is_unknown(self, reason: str) -> None:
        """Pause, because the store cannot be read: a message in it might be overtaken."""
        self._break(Reason.ORDER, f'{reason} (ordering = "strict" needs to read it)')

    def ordered(self, text: str) -> None:
        """Pause on an operator's order; *text* says who ordered it, and why."""
        self._break(Reason.OPERATOR, text)

    def order_is_over(self) -> None:
        """End that pause; nothing happens without one."""
        self._mend(Reason.OPERATOR)

    def _break(self, reason: Reason, text: str) -> None:
        if self._gate.reasons.get(reason) != text:
            self._observer.notify(Paused(reason, text))
            self._gate.suspend(reason, text)

    def _mend(self, reason: Reason) -> None:
        if reason in self._gate.reasons:
            self._observer.notify(Paused(reason, ""))
            self._gate.resume(reason)

    def _gate_changed(self, _event: GateEvent, _reason: Reason | None) -> None:
        if self._gate.is_closed or Reason.DEPENDENCY not in self._gate.reasons:
            self._stop_probe()

    def _set_probe(self) -> None:
        self._stop_probe()
        if self._gate.is_closed:
            return
        self._probe = self._reactor.callLater(self._breaker.wait, self._try)

    def _try(self) -> None:
        self._probe = None
        if Reason.OPERATOR in self._gate.reasons:
            # Nothing runs meanwhile, not even a probe.
            self._set_probe()
        elif not self._scheduler.bring_one():
            # Nothing is held or deferred: the next message of the queue is the probe.
            self._breaker = self._breaker.success()
            self._mend(Reason.DEPENDENCY)

    def _stop_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None and probe.active():
            probe.cancel()


def _met(outcome: Outcome, was_open: bool) -> bool:  # noqa: FBT001 -- of this module
    """Tell of an outcome that is no dependency's fault whether it met dependencies that work.

    A probe that failed for another reason did.
    """
    met: tuple[type, ...] = (Succeeded, Skipped, Failed) if was_open else (Succeeded, Skipped)
    if isinstance(outcome, Routed):
        return any(isinstance(result.outcome, met) for result in outcome.results)
    return isinstance(outcome, met)
