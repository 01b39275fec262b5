# SPDX-License-Identifier: GPL-2.0-or-later
"""The health of an instance, for which the watchdog of the service manager is fed.

:func:`judge` decides, and does nothing: facts and the time go in, a verdict comes out. Times are in
seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .lifecycle import State
from .text import duration_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delivery import Delivery

# Seconds. A handler that was cancelled may need some to close its files and connections.
CANCEL_GRACE = 30.0
# Seconds between two attempts to connect, at most 30; to find the host's address, up to 60; for
# TCP, 30; for the handshake, 30. Subscribing takes 60 at most. Some more for a slow machine.
PROGRESS_LIMIT = 240.0


@dataclass(frozen=True, slots=True)
class Healthy:
    """The instance does its work, or waits for something that will come."""


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """The instance does not do its work, and will not by itself.

    Attributes:
        reason: Why, in words for an operator.
    """

    reason: str


Verdict: TypeAlias = Healthy | Unhealthy

HEALTHY = Healthy()


@dataclass(frozen=True, slots=True)
class Overrun:
    """A run of the handler that takes longer than it may.

    Attributes:
        subject: Its deliveries, in words.
        deliveries: Its deliveries.
        deadline: When its time was over.
        is_cancelled: Whether it was told to end, as a coroutine is.
    """

    subject: str
    deliveries: tuple[Delivery, ...]
    deadline: float
    is_cancelled: bool


@dataclass(frozen=True, slots=True)
class HealthFacts:
    """The facts about an instance.

    Attributes:
        state: Where it is in its life.
        progress_at: When something last happened on its connection, or to it.
        overruns: The runs of its handler that take too long, the longest first.
        absent: The consumers that the broker no longer has, in words; "" for none.
        confirm_by: When the broker should have confirmed its consumers once more.
        relay_is_stuck: Whether the thread that sends what handlers published does not move.
    """

    state: State
    progress_at: float
    overruns: tuple[Overrun, ...] = ()
    absent: str = ""
    confirm_by: float = float("inf")
    relay_is_stuck: bool = False


def _overrun(facts: HealthFacts, now: float) -> str:
    for run in facts.overruns:
        grace = CANCEL_GRACE if run.is_cancelled else 0.0
        if now - run.deadline > grace:
            over = duration_text(max(round(now - run.deadline), 1))
            fault = (
                "does not end though it was cancelled" if run.is_cancelled else "does not return"
            )
            return f"the handler {fault}: {run.subject} is {over} over handler_timeout"
    return ""


def _silent(facts: HealthFacts, now: float) -> str:
    silence = now - facts.progress_at
    if silence <= PROGRESS_LIMIT:
        return ""
    duration = duration_text(round(silence))
    return f"no attempt to connect or subscribe came to an end for {duration}"


def _absent(facts: HealthFacts, _now: float) -> str:
    return facts.absent


def _unconfirmed(facts: HealthFacts, now: float) -> str:
    if now <= facts.confirm_by:
        return ""
    return f"whether it consumes is not known for {duration_text(round(now - facts.confirm_by))}"


def _stuck_relay(facts: HealthFacts, _now: float) -> str:
    return "the relay of the outbox does not move" if facts.relay_is_stuck else ""


# The other states have deadlines of their own: the author's setup has systemd's start timeout, and
# a drain ends by itself or by systemd's stop timeout.
_AT_WORK = frozenset({State.CONNECTING, State.SUBSCRIBING, State.CONSUMING, State.PAUSED})

# In these states, an instance is unhealthy if the function returns a reason. The first one counts.
RULES: tuple[tuple[frozenset[State], Callable[[HealthFacts, float], str]], ...] = (
    (_AT_WORK, _overrun),
    (_AT_WORK, _stuck_relay),
    (frozenset({State.CONNECTING, State.SUBSCRIBING}), _silent),
    (frozenset({State.CONSUMING}), _absent),
    (frozenset({State.CONSUMING}), _unconfirmed),
)


def judge(facts: HealthFacts, now: float) -> Verdict:
    """Judge the health at *now* of the instance that *facts* are about."""
    reasons = (rule(facts, now) for states, rule in RULES if facts.state in states)
    reason = next(filter(None, reasons), "")
    return Unhealthy(reason) if reason else HEALTHY
