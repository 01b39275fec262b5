# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether an instance does its work: what the watchdog of the service manager is fed for.

Decides, and does nothing: facts and the time go in, a verdict comes out. Times are in seconds of
one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .lifecycle import State
from .text import text

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delivery import Delivery

# Seconds. A handler that was cancelled may need some to close what it has open.
CANCEL_GRACE = 30.0
# Seconds between two attempts to connect, at most 30; to find the host's address, up to 60; for
# TCP, 30; for the handshake, 30. Subscribing takes 60 at most. Some more for a slow machine.
NEWS_LIMIT = 240.0


@dataclass(frozen=True, slots=True)
class Healthy:
    """It does its work, or waits for what it knows will come."""


@dataclass(frozen=True, slots=True)
class Sick:
    """It does not, and will not by itself.

    Attributes:
        reason: Why, in words for an operator.
    """

    reason: str


Verdict: TypeAlias = Healthy | Sick

HEALTHY = Healthy()


@dataclass(frozen=True, slots=True)
class Overrun:
    """A run of the handler that takes longer than it may.

    Attributes:
        what: What it runs on, in words.
        deliveries: What it runs on.
        deadline: When its time was over.
        is_cancelled: Whether it was told to end: a coroutine is.
    """

    what: str
    deliveries: tuple[Delivery, ...]
    deadline: float
    is_cancelled: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an instance.

    Attributes:
        state: Where it is in its life.
        news_at: When something last happened on its connection, or to it.
        overruns: The runs of its handler that take too long, the longest first.
        absent: Which of its consumers the broker no longer has; "" for none.
        confirm_by: When the broker should have confirmed its consumers once more.
    """

    state: State
    news_at: float
    overruns: tuple[Overrun, ...] = ()
    absent: str = ""
    confirm_by: float = float("inf")


def _overrun(facts: Facts, now: float) -> str:
    for run in facts.overruns:
        grace = CANCEL_GRACE if run.is_cancelled else 0.0
        if now - run.deadline > grace:
            over = text(max(round(now - run.deadline), 1))
            what = "does not end though it was cancelled" if run.is_cancelled else "does not return"
            return f"the handler {what}: {run.what} is {over} over handler_timeout"
    return ""


def _silent(facts: Facts, now: float) -> str:
    if now - facts.news_at <= NEWS_LIMIT:
        return ""
    return (
        f"no attempt to connect or subscribe came to an end for {text(round(now - facts.news_at))}"
    )


def _absent(facts: Facts, _now: float) -> str:
    return facts.absent


def _unconfirmed(facts: Facts, now: float) -> str:
    if now <= facts.confirm_by:
        return ""
    return f"whether it consumes is not known for {text(round(now - facts.confirm_by))}"


# What has a deadline of its own is not looked at: the author's setup has systemd's start timeout,
# and a drain ends by itself or by systemd's stop timeout.
_AT_WORK = frozenset({State.CONNECTING, State.SUBSCRIBING, State.CONSUMING, State.PAUSED})

# In each of these states an instance must not be what the function gives a reason for. The first
# reason counts.
RULES: tuple[tuple[frozenset[State], Callable[[Facts, float], str]], ...] = (
    (_AT_WORK, _overrun),
    (frozenset({State.CONNECTING, State.SUBSCRIBING}), _silent),
    (frozenset({State.CONSUMING}), _absent),
    (frozenset({State.CONSUMING}), _unconfirmed),
)


def judge(facts: Facts, now: float) -> Verdict:
    """Say whether an instance of which *facts* are known does its work at *now*."""
    reasons = (rule(facts, now) for states, rule in RULES if facts.state in states)
    reason = next(filter(None, reasons), "")
    return Sick(reason) if reason else HEALTHY
