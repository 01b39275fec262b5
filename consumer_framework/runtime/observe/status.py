# SPDX-License-Identifier: GPL-2.0-or-later
"""The line that ``systemctl status`` shows, and the report for operators' commands."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from consumer_framework.core.errors import StoreError
from consumer_framework.core.health import InstanceCondition
from consumer_framework.core.lag import UNKNOWN
from consumer_framework.core.lifecycle import State
from consumer_framework.core.stats import Progress, Snapshot
from consumer_framework.core.text import about, rate_text
from consumer_framework.runtime.control.schema import Counts, StatusReport

if TYPE_CHECKING:
    from consumer_framework.core.lag import Lag
    from consumer_framework.runtime.health import Health
    from consumer_framework.runtime.instance import Instance

_NOTHING = Snapshot()
# The conditions that the state does not show.
_SHOWN = frozenset(
    {
        InstanceCondition.STUCK,
        InstanceCondition.UNHEALTHY,
        InstanceCondition.RETRYING,
        InstanceCondition.LAGGING,
        InstanceCondition.SLOW,
    }
)


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """The facts about an instance at one moment.

    Attributes:
        broker: ``HOST:PORT``.
        queues: How many queues it consumes from.
        counts: The counts since it started.
        rate: Messages handled in a second, lately.
        held: How many messages are held now.
        deferred: How many deferred messages are in the store now.
        quarantined: How many messages in the store wait for an operator now.
        lag: How many messages were ready in its queues when the broker was asked; None where it
            was not.
        lag_time: The age of the oldest message that waits.
        up: Seconds since it started.
        trouble: Why it does not consume, or why it stopped; ``""`` for no reason.
        awaited: The things that it waits for before it can stop, in words.
        left: Seconds until it gives up waiting; None where it does not.
        memory_remark: Why it takes on less than its settings say; ``""`` if it does not.
        due: How many deferred messages are due, where those are more than the slots take in a
            moment.
    """

    broker: str = ""
    queues: int = 0
    counts: Snapshot = _NOTHING
    rate: float = 0.0
    held: int = 0
    deferred: int = 0
    quarantined: int = 0
    lag: int | None = None
    lag_time: Lag = UNKNOWN
    up: float = 0.0
    trouble: str = ""
    awaited: str = ""
    left: float | None = None
    memory_remark: str = ""
    due: int = 0


def status_line(state: State, facts: StatusFacts) -> str:
    """Return one line about an instance."""
    match state:
        case State.BUILDING:
            text = f"Starting: {facts.trouble or 'setting up the handler'}{_give_up(facts)}"
        case State.CONNECTING:
            text = f"{_connecting(facts)}{_give_up(facts)}"
        case State.SUBSCRIBING:
            connected = f"Connected to the broker at {facts.broker}, subscribing"
            text = f"{facts.trouble or connected}{_give_up(facts)}"
        case State.CONSUMING:
            text = f"consuming {_queues(facts)}, {rate_text(facts.rate)}, {_numbers(facts)}"
        case State.PAUSED:
            why = f"Paused: {facts.trouble}" if facts.trouble else "Paused"
            text = f"{why}{_give_up(facts)}; {_numbers(facts)}"
        case State.FAILING:
            why = f"; {facts.trouble}" if facts.trouble else ""
            text = f"Failing: {_awaited(facts)}{why}"
        case State.DRAINING:
            text = f"Stopping: {_awaited(facts)}"
        case State.STOPPED:
            # The counts of this process: more messages may wait in the store.
            text = facts.trouble or f"Stopped; since its start: {counts_text(facts.counts)}"
    return text


def counts_text(counts: Snapshot) -> str:
    """Name the counts that are not 0, and the successes."""
    numbers = {
        "handled": counts.acked,
        "held": counts.held,
        "deferred": counts.deferred,
        "quarantined": counts.quarantined,
        "requeued": counts.requeued,
        "rejected": counts.rejected,
        "undecodable": counts.undecodable,
        "without a route": counts.unrouted,
        "failed": counts.failed,
    }
    shown = [f"{n} {what}" for what, n in numbers.items() if n or what == "handled"]
    return ", ".join(shown)


def _connecting(facts: StatusFacts) -> str:
    if facts.trouble:
        return f"Waiting for the broker at {facts.broker}: {facts.trouble}"
    return f"Connecting to the broker at {facts.broker}"


def _queues(facts: StatusFacts) -> str:
    return "1 queue" if facts.queues == 1 else f"{facts.queues} queues"


def _numbers(facts: StatusFacts) -> str:
    """Name the handled and the waiting messages, and the time since the start."""
    waiting = {"held": facts.held, "deferred": facts.deferred, "quarantined": facts.quarantined}
    parts = [f"{facts.counts.acked} handled"]
    parts += [f"{count} {what}" for what, count in waiting.items() if count]
    if facts.due:
        parts.append(f"retries share the slots ({facts.due} due)")
    if facts.lag is not None:
        parts.append(f"lag {facts.lag}{_oldest(facts.lag_time)}")
    text = ", ".join([*parts, f"up {about(facts.up)}"])
    return f"{text}; {facts.memory_remark}" if facts.memory_remark else text


def _oldest(lag: Lag) -> str:
    if lag.seconds is None or lag.seconds < 1:
        return ""
    is_guess = "about " if lag.source == "estimate" else ""
    return f" (oldest {is_guess}{about(lag.seconds)})"


def health_remarks(health: Health, notice: float) -> list[str]:
    """Return the parts of the line about a health that needs attention.

    Args:
        health: The health of an instance.
        notice: The seconds before a loss from which on it is shown.
    """
    remarks = []
    assessment, loss = health.assessment, health.loss
    if assessment.condition in _SHOWN:
        remarks.append(f"{assessment.condition.value}: {assessment.reason}")
    if loss is not None and loss.seconds < notice:
        when = f"in {about(loss.seconds)}" if loss.seconds else "now"
        remarks.append(f"loss {when}: {loss.subject}")
    return remarks


def _give_up(facts: StatusFacts) -> str:
    return "" if facts.left is None else f"; gives up in {about(facts.left)}"


def _awaited(facts: StatusFacts) -> str:
    at_most = "" if facts.left is None else f", {about(facts.left)} at the most"
    return f"waiting for {facts.awaited or 'the connection'}{at_most}"


class StatusReporter:
    """Describes *instance* for the service manager and on the control socket."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._now = instance.clock.monotonic
        self._progress = Progress(self._now())
        self._has_proven_itself = False
        self._stored = (0, 0)

    def line(self) -> str:
        """Return the line that ``systemctl status`` shows."""
        return self._line(self._instance.health.now())

    @property
    def rate(self) -> float:
        """The messages handled in a second, over the last minute."""
        return self._progress.rate(self._now())

    def _line(self, health: Health) -> str:
        instance, now = self._instance, self._now()
        counts = instance.counters.snapshot()
        deferred, quarantined = self._stored_counts()
        self._progress.look(counts.acked, now)
        facts = StatusFacts(
            broker=instance.broker,
            queues=len(instance.session.queues),
            counts=counts,
            rate=self._progress.rate(now),
            held=instance.dispatcher.held,
            deferred=deferred,
            due=self._due(),
            quarantined=quarantined,
            lag=instance.lag,
            lag_time=health.lag,
            up=self._progress.up(now),
            trouble=instance.trouble,
            awaited=instance.drain.awaited if instance.drain is not None else "",
            left=instance.deadline.left,
            memory_remark=instance.memory_relief.remark,
        )
        remarks = [*instance.remarks.values(), instance.publications.remark]
        if not instance.gate.is_closed:
            remarks += health_remarks(health, instance.plan.framework.thresholds.loss)
        return "; ".join([status_line(instance.state, facts), *filter(None, remarks)])

    def announce(self) -> None:
        """Tell the service manager the status line."""
        notifier = self._instance.notifier
        notifier.status(self.line())
        if not self._has_proven_itself and self._progress.is_proven(self._now()):
            self._has_proven_itself = True
            notifier.restart_reset()

    def announce_ready(self) -> None:
        """Tell the service manager that the instance consumes; a reload says so at its end."""
        self._instance.was_ready = True
        if self._instance.is_reloading:
            self.announce()
        else:
            self._instance.notifier.ready(self.line())

    def report(self) -> StatusReport:
        """Return the state of the instance, without the numbers of its store."""
        instance, now = self._instance, self._now()
        health = instance.health.now()
        counts = asdict(instance.counters.snapshot())
        return StatusReport(
            pid=os.getpid(),
            state=instance.state.name.lower(),
            status=self._line(health),
            trouble=instance.trouble,
            condition=health.assessment.condition.value,
            reason=health.assessment.reason,
            remarks=tuple(filter(None, instance.remarks.values())),
            broker=instance.broker,
            queues=tuple(instance.session.queues),
            held=instance.dispatcher.held,
            lag=instance.lag,
            lag_seconds=None if health.lag.seconds is None else round(health.lag.seconds, 3),
            lag_source=health.lag.source,
            loss=health.loss,
            rate=round(self._progress.rate(now), 3),
            up=round(self._progress.up(now)),
            counts=Counts(**counts, running=len(instance.running)),
            outbox=instance.publications.report(),
        )

    def _stored_counts(self) -> tuple[int, int]:
        """Return how many messages are deferred, and how many wait for an operator."""
        # At the end the store is closed; other parts report a store that cannot be read.
        if self._instance.state is not State.STOPPED:
            with suppress(StoreError):
                stats = self._instance.files.store.stats()
                self._stored = stats.deferred, stats.quarantined + stats.replaying
        return self._stored

    def _due(self) -> int:
        """Return how many deferred messages are due, where those are many; 0 otherwise."""
        instance = self._instance
        if instance.state is not State.STOPPED and instance.dispatcher.is_behind:
            with suppress(StoreError):
                return instance.files.store.count_due(instance.clock.time())
        return 0
