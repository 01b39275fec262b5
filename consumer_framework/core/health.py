# SPDX-License-Identifier: GPL-2.0-or-later
"""The health of an instance: whether it is stuck, and the condition that operators see.

:func:`judge` decides for the watchdog of the service manager, which restarts an instance that is
stuck. :func:`condition_of` decides for people, who want to know more: that the instance consumes,
and is slow. Both do nothing: facts go in, a verdict comes out. Times are in seconds of one
monotonic clock.

:data:`CONDITIONS` is the table of the conditions. The first one that applies holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from .lag import UNKNOWN
from .lifecycle import State
from .text import about, duration_text, plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delivery import Delivery
    from .lag import Lag

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


# The condition.


class InstanceCondition(Enum):
    """The condition of an instance, in one word."""

    FAILED = "failed"  # it cannot go on, and ends
    DRAINING = "draining"  # it was told to stop
    STUCK = "stuck"  # it does not do its work, and will not by itself
    STARTING = "starting"  # it has not consumed yet
    PAUSED = "paused"  # it consumes nothing until something that it needs works again
    CONNECTING = "connecting"  # it has lost the broker, or a queue
    UNHEALTHY = "unhealthy"  # the author's health() reports a fault
    RETRYING = "retrying"  # many runs fail, and are tried again
    LAGGING = "lagging"  # messages wait longer, or more of them wait, than they should
    SLOW = "slow"  # a run of the handler takes longer than it should
    IDLE = "idle"  # nothing has come for a while
    CONSUMING = "consuming"

    @property
    def needs_attention(self) -> bool:
        """True if an operator should look."""
        return self not in _CALM


_CALM = frozenset(
    {
        InstanceCondition.CONSUMING,
        InstanceCondition.IDLE,
        InstanceCondition.STARTING,
        InstanceCondition.DRAINING,
    }
)


@dataclass(frozen=True, slots=True)
class ConditionLimits:
    """The thresholds of the conditions; see ``[consumer_config.framework.thresholds]``.

    Attributes:
        lag: Messages that wait on the broker.
        lag_time: The age of the oldest message that waits.
        slow: The time of one run; infinite for no limit.
        retry_share: The share of runs that are tried again, from 0 to 1.
        idle: The time without a message.
    """

    lag: int
    lag_time: float
    slow: float
    retry_share: float
    idle: float


@dataclass(frozen=True, slots=True)
class ConditionFacts:
    """The facts about an instance from which its condition follows.

    Attributes:
        state: Where it is in its life.
        trouble: The reason why it does not consume; "" for none.
        exit_code: The exit code that it will end with; 0 for none.
        was_ready: Whether it consumed at any time.
        blocked: The reason why the broker takes nothing from it; "" for none.
        stuck: The reason of :func:`judge`; "" if it is healthy.
        fault: The fault that the author's ``health()`` reports; "" for none.
        runs: The runs that ended in the last minutes.
        retried: Those of them after which the message runs again.
        retries: The messages that wait for their next attempt.
        lag: The messages that wait on the broker; None if unknown.
        lag_time: The age of the oldest message that waits.
        longest: The message that is in the handler for the longest time, in words.
        longest_time: That time.
        idle_for: The time since there was anything to do.
    """

    state: State
    trouble: str = ""
    exit_code: int = 0
    was_ready: bool = True
    blocked: str = ""
    stuck: str = ""
    fault: str = ""
    runs: int = 0
    retried: int = 0
    retries: int = 0
    lag: int | None = None
    lag_time: Lag = UNKNOWN
    longest: str = ""
    longest_time: float = 0.0
    idle_for: float = 0.0


@dataclass(frozen=True, slots=True)
class Assessment:
    """The condition of an instance, and the reason for it in words; "" for none."""

    condition: InstanceCondition
    reason: str = ""


# Each returns the reason of its condition, "" for a condition without a reason, and None if the
# condition does not apply.


def _failed(facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    is_ending = facts.state is State.FAILING or (
        facts.state is State.STOPPED and facts.exit_code != 0
    )
    return facts.trouble if is_ending else None


def _draining(facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    return "" if facts.state in {State.DRAINING, State.STOPPED} else None


def _stuck(facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    return facts.stuck or None


_NOT_YET = frozenset({State.BUILDING, State.CONNECTING, State.SUBSCRIBING})


def _starting(facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    return facts.trouble if facts.state in _NOT_YET and not facts.was_ready else None


def _paused(facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    return facts.trouble if facts.state is State.PAUSED else facts.blocked or None


def _connecting(facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    return facts.trouble if facts.state in _NOT_YET else None


def _unhealthy(facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    return facts.fault or None


def _retrying(facts: ConditionFacts, limits: ConditionLimits) -> str | None:
    is_much = facts.retried > 0 and facts.retried >= limits.retry_share * facts.runs
    if not (is_much and facts.retries):
        return None
    runs = f"{facts.retried} of {plural(facts.runs, 'run')} lately"
    return f"{runs} to be tried again, {plural(facts.retries, 'message')} waiting for that"


def _lagging(facts: ConditionFacts, limits: ConditionLimits) -> str | None:
    parts = []
    if facts.lag is not None and facts.lag >= limits.lag:
        parts.append(f"{plural(facts.lag, 'message')} wait on the broker")
    seconds = facts.lag_time.seconds
    if seconds is not None and seconds >= limits.lag_time:
        is_guess = "about " if facts.lag_time.source == "estimate" else ""
        parts.append(f"the oldest message waits for {is_guess}{about(seconds)}")
    return ", ".join(parts) or None


def _slow(facts: ConditionFacts, limits: ConditionLimits) -> str | None:
    if not facts.longest or facts.longest_time < limits.slow:
        return None
    return f"{facts.longest} is in the handler for {about(facts.longest_time)}"


def _idle(facts: ConditionFacts, limits: ConditionLimits) -> str | None:
    if facts.idle_for < limits.idle:
        return None
    return f"no message came for {about(facts.idle_for)}"


def _consuming(_facts: ConditionFacts, _limits: ConditionLimits) -> str | None:
    return ""


CONDITIONS: dict[InstanceCondition, Callable[[ConditionFacts, ConditionLimits], str | None]] = {
    InstanceCondition.FAILED: _failed,
    InstanceCondition.DRAINING: _draining,
    InstanceCondition.STUCK: _stuck,
    InstanceCondition.STARTING: _starting,
    InstanceCondition.PAUSED: _paused,
    InstanceCondition.CONNECTING: _connecting,
    InstanceCondition.UNHEALTHY: _unhealthy,
    InstanceCondition.RETRYING: _retrying,
    InstanceCondition.LAGGING: _lagging,
    InstanceCondition.SLOW: _slow,
    InstanceCondition.IDLE: _idle,
    InstanceCondition.CONSUMING: _consuming,
}


def condition_of(facts: ConditionFacts, limits: ConditionLimits) -> Assessment:
    """Return the first condition of :data:`CONDITIONS` that applies, with its reason."""
    reasons = ((condition, rule(facts, limits)) for condition, rule in CONDITIONS.items())
    return next(Assessment(condition, why) for condition, why in reasons if why is not None)
