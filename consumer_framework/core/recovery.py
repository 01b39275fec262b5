# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides the disposition of a delivery. It never acts, and reads no clock and no random source.

The policy is data, and is applied in this order:

1. A signal that the author raised on purpose is answered as it says.
2. The rules for exceptions, of which the first match wins.
3. The schedule of retries, for exceptions that no rule matches.

A message that several routes have is decided for each route by the same rules, with the attempts of
that route. :func:`combined` makes one disposition of theirs.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from . import disposition as to
from . import errors
from .attempt import LINE_LIMIT, NO_HISTORY, History, RouteState, attempt_of, one_line
from .delivery import (
    Blocked,
    Crashed,
    Delivery,
    Failed,
    Outcome,
    Routed,
    RouteResult,
    SettledBefore,
    Skipped,
    Succeeded,
    Undecodable,
    Unrouted,
    Withdrawn,
)
from .text import clipped, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .disposition import Disposition


class Then(Enum):
    """The answer of a rule."""

    RETRY = "retry"
    DEFER = "defer"
    DROP = "drop"
    QUARANTINE = "quarantine"
    DEPENDENCY = "dependency"
    HALT = "halt"


class OnExhausted(Enum):
    """The end of a message whose attempts are spent."""

    QUARANTINE = "quarantine"
    DROP = "drop"
    REQUEUE = "requeue"
    REJECT = "reject"
    HALT = "halt"


class OnInvalid(Enum):
    """The end of bytes that are no valid message."""

    QUARANTINE = "quarantine"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Rule:
    """The answer to a handler that raised one of *exceptions*.

    Attributes:
        source: Where the rule is written, for ``fm-consumer explain``.
    """

    exceptions: tuple[type[BaseException], ...]
    then: Then
    source: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that decide. Times are in seconds.

    Attributes:
        schedule: Seconds until the second attempt, the third, and so on.
        hold_ceiling: Seconds that a delivery may stay unacknowledged.
        on_exhausted: The end after the last attempt.
        on_invalid: The end of bytes that are no valid message.
        crash_attempts: Deaths of the process in the handler that a message may cause.
        rules: The rules for exceptions that are no signals, first match first.
        defer: Seconds that the rules' ``defer`` means.
        dependency: Seconds until a message is tried again that met a broken dependency.
        strict: Whether a message that may not overtake another stays on the broker, and not in the
            store.
    """

    schedule: tuple[float, ...] = (0.0, 10.0, 60.0, 300.0)
    hold_ceiling: float = 900.0
    on_exhausted: OnExhausted = OnExhausted.QUARANTINE
    on_invalid: OnInvalid = OnInvalid.QUARANTINE
    crash_attempts: int = 2
    rules: tuple[Rule, ...] = ()
    defer: float = 300.0
    dependency: float = 30.0
    strict: bool = False


class Situation(NamedTuple):
    """The circumstances of a decision, besides the delivery and its outcome.

    Attributes:
        now: Seconds since the epoch.
        spread: A random number from 0 to 1.
        may_hold: Whether a hold slot is free.
        waited: Seconds since the broker delivered it.
        may_store: Whether there is a store; without one, messages stay with the broker.
    """

    now: float
    spread: float
    may_hold: bool
    waited: float = 0.0
    may_store: bool = True


class Decision(NamedTuple):
    """The disposition of a delivery, and its history from now on.

    Attributes:
        dependency_fault: Whether the breaker has to hear of it.
    """

    disposition: Disposition
    history: History
    dependency_fault: bool = False


# Seconds. Only a counted retry may run sooner again: no message becomes a hot loop.
SHORTEST_WAIT = 1.0
# The share of a delay that is added or taken away at random.
JITTER = 0.2
_HIGHEST_EXIT_CODE = 255
_ACK = to.Ack()
# The reason of a message that goes to the store although no handler has seen it.
BEHIND = "behind an earlier message with the same key"
# The reason of a message that is lost because the consumer has no method for it.
NO_ROUTE = "no route of the consumer takes it"


def decide(delivery: Delivery, outcome: Outcome, policy: Policy, situation: Situation) -> Decision:
    """Choose the disposition of *delivery* after its handler produced *outcome*.

    Returns:
        Always a decision. A failure that no rule matches is tried again, and once the attempts are
        spent, ``policy.on_exhausted`` says the end.
    """
    history = delivery.history
    disposition: Disposition
    match outcome:
        case Succeeded() | Skipped() | SettledBefore():
            disposition = _ACK
        case Failed(error):
            answers = (answer for kind, answer in _ANSWERS.items() if isinstance(error, kind))
            case = _Case(delivery, policy, situation, outcome.route)
            return next(answers, _Case.by_rules)(case, error)
        case Routed(results):
            return combined(_Case(delivery, policy, situation), results)
        case Undecodable(error):
            history = history.failed(attempt_of(error, situation.now))
            reason = f"no valid message: {one_line(error)}"
            rejects = policy.on_invalid is OnInvalid.REJECT or not situation.may_store
            is_brokers = not (delivery.row or delivery.replayed)
            disposition = to.Reject(reason) if rejects and is_brokers else to.Quarantine(reason)
        case Crashed():
            reason, history = _crashed(outcome, history)
            disposition = to.Quarantine(reason) if situation.may_store else to.Requeue(reason)
        case Withdrawn():
            disposition = to.GiveBack()
        case Blocked():
            # The store keeps it behind the other, quarantined where that one is.
            stays = policy.strict or not situation.may_store
            disposition = to.GiveBack() if stays else to.Defer(situation.now, BEHIND)
        case Unrouted():
            # The consumer took it once: the store has it, or it has run.
            is_stored = delivery.row or delivery.replayed
            has_run = situation.may_store and history != NO_HISTORY
            disposition = to.Quarantine(NO_ROUTE) if is_stored or has_run else to.Reject(NO_ROUTE)
    return Decision(disposition, history)


def _crashed(outcome: Crashed, history: History) -> tuple[str, History]:
    reason = f"the process died {outcome.times} times while it was handled"
    if outcome.hung:
        late = "the handler did not return within handler_timeout"
        reason = f"{late}; the process was restarted {outcome.times} times because of it"
    if not outcome.route:
        return reason, history
    state = RouteState(outcome.route, "failed", reason=reason)
    return f"route {outcome.route}: {reason}", history.with_state(state)


# Before there is a message, an unreachable service is never a message's fault.
_UNREACHABLE = (ConnectionError, TimeoutError, socket.gaierror)


def broken_dependency(error: BaseException, policy: Policy) -> str | None:
    """Tell whether *error*, which a handler's set-up raised, is the fault of a dependency.

    It is if the author or a rule says so. If neither says anything, a connection that is refused,
    cut or not answered is, and a name that cannot be resolved.

    Returns:
        The reason in one line; None if waiting does not help.
    """
    for kind in _ANSWERS:
        if isinstance(error, kind):
            return _reason(error) if kind is errors.DependencyFault else None
    for rule in policy.rules:
        if isinstance(error, rule.exceptions):
            return _reason(error) if rule.then is Then.DEPENDENCY else None
    return _reason(error) if isinstance(error, _UNREACHABLE) else None


@dataclass(frozen=True, slots=True)
class _Case:
    """One failed delivery, in one route of the consumer, and the possible answers."""

    delivery: Delivery
    policy: Policy
    situation: Situation
    route: str = ""

    def by_rules(self, error: BaseException) -> Decision:
        for rule in self.policy.rules:
            if isinstance(error, rule.exceptions):
                return _THEN[rule.then](self, error)
        return self.retry(error)

    def retry(self, error: BaseException) -> Decision:
        history = self._failed(error)
        used = history.attempts_of(self.route)
        if used > len(self.policy.schedule) or self.delivery.replayed:
            return Decision(self._exhausted(error, used), history)
        after = error.after if isinstance(error, errors.Retry) else None
        delay = self._spread(self.policy.schedule[used - 1]) if after is None else after
        # The broker can dead-letter only messages that it still has.
        stores = self.policy.on_exhausted is not OnExhausted.REJECT
        later = self.later(self.situation.now + delay, one_line(error), stores=stores)
        return Decision(later, history)

    def defer(self, error: BaseException) -> Decision:
        now = self.situation.now
        until = error.until if isinstance(error, errors.Defer) else now + self.policy.defer
        until = max(until, now + SHORTEST_WAIT)
        return Decision(self.later(until, one_line(error)), self.delivery.history)

    def drop(self, error: BaseException) -> Decision:
        return Decision(to.Reject(_reason(error)), self.delivery.history)

    def quarantine(self, error: BaseException) -> Decision:
        reason = _reason(error)
        aside = to.Quarantine(reason) if self.situation.may_store else to.Requeue(reason)
        return Decision(aside, self._failed(error))

    def dependency(self, error: BaseException) -> Decision:
        wait = max(SHORTEST_WAIT, self._spread(self.policy.dependency))
        until = self.situation.now + wait
        later = self.later(until, _reason(error))
        return Decision(later, self.delivery.history, dependency_fault=True)

    def halt(self, error: BaseException) -> Decision:
        reason = _reason(error)
        if not isinstance(error, errors.Halt):
            halt = to.Halt(errors.ExitCode.HANDLER_FAILED, requeue=True, reason=reason)
            return Decision(halt, self.delivery.history)
        code: object = error.exit_code
        # The kernel keeps eight bits of an exit code: 256 would be success.
        if not (isinstance(code, int) and 0 <= code <= _HIGHEST_EXIT_CODE):
            reason = f"{reason} (it said exit code {code}; there are 0 to 255)".strip()
            code = errors.ExitCode.HANDLER_FAILED
        return Decision(to.Halt(code, error.requeue, reason), self.delivery.history)

    def _failed(self, error: BaseException) -> History:
        return self.delivery.history.failed(attempt_of(error, self.situation.now, self.route))

    def _spread(self, delay: float) -> float:
        return delay * (1 + JITTER * (2 * self.situation.spread - 1))

    def later(self, until: float, reason: str, *, stores: bool = True) -> Disposition:
        held_for = until - self.situation.now + self.situation.waited
        # A retry at once takes no hold slot: it goes before all others, and needs no write.
        may_hold = self.situation.may_hold or until <= self.situation.now
        fits = held_for <= self.policy.hold_ceiling and may_hold
        if fits and not self.delivery.row:
            return to.Hold(until, reason)
        if self.delivery.row or (stores and self.situation.may_store):
            return to.Defer(until, reason)
        return self._later_without_store(reason)

    def _later_without_store(self, reason: str) -> Disposition:
        left = self.policy.hold_ceiling - self.situation.waited
        if self.situation.may_hold and left >= SHORTEST_WAIT:
            return to.Hold(self.situation.now + left, reason)
        return to.Requeue(reason)

    def _exhausted(self, error: BaseException, used: int) -> Disposition:
        if self.delivery.replayed:
            return to.Quarantine(one_line(error))
        return self._spent(f"{one_line(error)} ({used} attempts)" if used > 1 else one_line(error))

    def _spent(self, reason: str) -> Disposition:
        match self.policy.on_exhausted:
            case OnExhausted.REJECT if not self.delivery.row:
                return to.Reject(reason)
            case OnExhausted.QUARANTINE if not self.situation.may_store:
                return to.Requeue(reason)
            case OnExhausted.QUARANTINE | OnExhausted.REJECT:
                return to.Quarantine(reason)
            case OnExhausted.DROP:
                return to.Reject(reason)
            case OnExhausted.REQUEUE:
                return to.Requeue(reason)
            case OnExhausted.HALT:
                return to.Halt(errors.ExitCode.HANDLER_FAILED, requeue=True, reason=reason)


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(reason, str) and reason:
        return printable(clipped(reason, LINE_LIMIT))
    return one_line(error)


_Answer: TypeAlias = "Callable[[_Case, BaseException], Decision]"

# The answers to the signals of authors.
_ANSWERS: dict[type[BaseException], _Answer] = {
    errors.Retry: _Case.retry,
    errors.Defer: _Case.defer,
    errors.Drop: _Case.drop,
    errors.Quarantine: _Case.quarantine,
    errors.DependencyFault: _Case.dependency,
    errors.Halt: _Case.halt,
}

# The answers of rules to other exceptions.
_THEN: dict[Then, _Answer] = {
    Then.RETRY: _Case.retry,
    Then.DEFER: _Case.defer,
    Then.DROP: _Case.drop,
    Then.QUARANTINE: _Case.quarantine,
    Then.DEPENDENCY: _Case.dependency,
    Then.HALT: _Case.halt,
}


# Several routes with one message.


def combined(case: _Case, results: Sequence[RouteResult]) -> Decision:
    """Make one decision of those about the routes of a message.

    The first row of :data:`_COMBINED` that has a disposition among *results* decides. So nothing is
    acknowledged before every route is done, or the store has the message for those that are not.

    Returns:
        The decision. Its history has the new attempts, and the states of the routes.
    """
    history = case.delivery.history
    known = len(history.attempts)
    attempts = history.attempts
    for result in results:
        attempts += result.decision.history.attempts[known:]
    states = (state_of(result) for result in results)
    routes = tuple(state for state in states if state is not None)
    history = History(attempts, history.crashes, routes)
    is_fault = any(result.decision.dependency_fault for result in results)
    for kinds, combine in _COMBINED:
        if deciding := [r for r in results if isinstance(r.decision.disposition, kinds)]:
            return Decision(combine(case, deciding, results), history, is_fault)
    return Decision(_ACK, history, is_fault)


def state_of(result: RouteResult) -> RouteState | None:
    """Return the state of a route; None for one that runs as soon as the message does."""
    match result.decision.disposition:
        case to.Ack() | to.Halt(requeue=False):
            return RouteState(result.route, "done")
        case to.Reject(reason):
            return RouteState(result.route, "dropped", reason=reason)
        case to.Hold(until, reason) | to.Defer(until, reason):
            return RouteState(result.route, "later", until, reason)
        case to.Quarantine(reason):
            return RouteState(result.route, "failed", reason=reason)
    return None


def result_of(state: RouteState, history: History) -> RouteResult:
    """Return the result of a route that does not run this time, as its *state* says."""
    known: dict[str, Disposition] = {
        "done": _ACK,
        "dropped": to.Reject(state.reason),
        "later": to.Defer(state.until, state.reason),
        "failed": to.Quarantine(state.reason),
    }
    return RouteResult(state.route, Decision(known[state.ending], history))


def _named(results: Sequence[RouteResult]) -> str:
    named = ((f"route {result.route}", result.decision.disposition.reason) for result in results)
    return "; ".join(f"{name}: {reason}" if reason else name for name, reason in named)


def _halt(_: _Case, deciding: Sequence[RouteResult], results: Sequence[RouteResult]) -> Disposition:
    halt = cast("to.Halt", deciding[0].decision.disposition)
    states = [state_of(result) for result in results]
    # An acknowledgement would lose the message for the routes that are not done.
    is_done = all(state is not None and state.is_done for state in states)
    return to.Halt(halt.exit_code, not is_done, _named(deciding[:1]))


def _earliest(
    case: _Case, deciding: Sequence[RouteResult], _: Sequence[RouteResult]
) -> Disposition:
    first = min(deciding, key=_until)
    stores = case.policy.on_exhausted is not OnExhausted.REJECT
    return case.later(_until(first), _named([first]), stores=stores)


def _until(result: RouteResult) -> float:
    return cast("to.Hold | to.Defer", result.decision.disposition).until


_Combine: TypeAlias = "Callable[[_Case, Sequence[RouteResult], Sequence[RouteResult]], Disposition]"

# Dispositions of routes, the strongest first, and the disposition of a message with such a route.
# If there is none of them, every route is done.
_COMBINED: tuple[tuple[tuple[type[Disposition], ...], _Combine], ...] = (
    ((to.Halt,), _halt),
    ((to.GiveBack,), lambda _case, _deciding, _all: to.GiveBack()),
    ((to.Hold, to.Defer), _earliest),
    ((to.Requeue,), lambda _case, deciding, _all: to.Requeue(_named(deciding))),
    ((to.Quarantine,), lambda _case, deciding, _all: to.Quarantine(_named(deciding))),
    ((to.Reject,), lambda _case, deciding, _all: to.Reject(_named(deciding))),
)
