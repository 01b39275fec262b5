# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides what becomes of a delivery. Never acts, never reads a clock or a random source.

The policy is data: an ordered table of rules, the first match wins, and an answer for what no
rule matches. It answers as ``fedora-messaging consume`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from . import disposition as to
from .delivery import Failed, Outcome, Succeeded, Undecodable
from .errors import Drop, ExitCode, Halt, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from .disposition import Disposition

Answer: TypeAlias = "Callable[[Any], Disposition]"


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a delivery whose handler raised one of *raised*."""

    raised: tuple[type[BaseException], ...]
    then: Answer


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules for failures, first match first, and the answer for what none of them matches."""

    rules: tuple[Rule, ...]
    otherwise: Answer
    undecodable: Answer


_HIGHEST_EXIT_CODE = 255


def _halt(signal: Halt) -> Disposition:
    """The kernel keeps eight bits of an exit code: 256 would be success."""
    if 0 <= signal.exit_code <= _HIGHEST_EXIT_CODE:
        return to.Halt(signal.exit_code, signal.requeue, signal.reason)
    reason = f"{signal.reason} (it said exit code {signal.exit_code}; there are 0 to 255)".strip()
    return to.Halt(ExitCode.HANDLER_FAILED, signal.requeue, reason)


def _fail(error: BaseException) -> Disposition:
    reason = f"the handler raised {type(error).__name__}: {error}"
    return to.Halt(ExitCode.HANDLER_FAILED, requeue=True, reason=reason)


UPSTREAM = Policy(
    rules=(
        Rule((Retry,), lambda signal: to.Requeue(signal.reason)),
        Rule((Drop,), lambda signal: to.Reject(signal.reason)),
        Rule((Halt,), _halt),
    ),
    otherwise=_fail,
    undecodable=to.Reject,
)


def decide(outcome: Outcome, policy: Policy) -> Disposition:
    """Choose what becomes of the delivery that ended in *outcome*.

    Returns:
        Never None: what no rule matches is answered by ``policy.otherwise``.
    """
    match outcome:
        case Succeeded():
            return to.Ack()
        case Undecodable(reason):
            return policy.undecodable(reason)
        case Failed(error):
            matching = (rule.then for rule in policy.rules if isinstance(error, rule.raised))
            return next(matching, policy.otherwise)(error)
