# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide about messages that were not sent: by topic, and by the number of attempts. Pure.

The three choices of a publisher are :class:`.OnFailure`; a message without a queue is
:class:`.Unroutable`. Neither a clock nor a random source is read here: the caller passes both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from consumer_framework.core.limits import backoff_delay
from consumer_framework.core.topics import matches
from consumer_framework.settings import OnFailure, Unroutable

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.settings import OutboxRule, OutboxSettings

__all__ = [
    "ENDPOINT",
    "LONGEST",
    "MESSAGE",
    "TOPIC",
    "Backoff",
    "OnFailure",
    "Policy",
    "Unroutable",
]

_Choice = TypeVar("_Choice")
# Topics whose rules are remembered: real applications have tens.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delays between attempts: each is twice the one before, up to a longest one.

    Attributes:
        first: Seconds before the second attempt, at most.
        longest: Seconds that no delay exceeds.
    """

    first: float
    longest: float

    def after(self, attempts: int, spread: float) -> float:
        """Return the seconds to wait after so many failed attempts.

        Args:
            attempts: The number of failed attempts, from 1.
            spread: A random number from 0 to 1, which takes up to half of the delay away.
        """
        return backoff_delay(max(attempts, 1), spread, first=self.first, ceiling=self.longest)


# An endpoint comes back within seconds or minutes, and each attempt is a connection.
ENDPOINT = Backoff(1.0, 30.0)
# A single message that fails alone waits for a cause of its own to go away.
MESSAGE = Backoff(1.0, 300.0)
# A missing exchange or permission waits for an administrator.
TOPIC = Backoff(10.0, 600.0)
# No row is due later than this many seconds from now, unless the clock was set back.
LONGEST = max(ENDPOINT.longest, MESSAGE.longest, TOPIC.longest)


@dataclass(frozen=True)
class Policy:
    """The answers for messages that were not sent, by topic.

    Attributes:
        on_failure: The answer for topics without a rule.
        unroutable: Likewise.
        rules: The first rule that matches a topic and has the key decides.
    """

    on_failure: OnFailure = OnFailure.SPOOL
    unroutable: Unroutable = Unroutable.ACCEPT
    rules: tuple[OutboxRule, ...] = ()
    _find: Callable[[str], tuple[OnFailure, Unroutable]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_find", lru_cache(_REMEMBERED)(self._search))

    @classmethod
    def of(cls, settings: OutboxSettings) -> Policy:
        """Return the policy of *settings*."""
        return cls(settings.on_failure, settings.unroutable, settings.rules)

    def on_failure_of(self, topic: str) -> OnFailure:
        """Return the treatment of a message with *topic* that the broker does not take now."""
        return self._find(topic)[0]

    def unroutable_of(self, topic: str) -> Unroutable:
        """Return the treatment of a message with *topic* that no queue is bound for."""
        return self._find(topic)[1]

    def _search(self, topic: str) -> tuple[OnFailure, Unroutable]:
        matching = [rule for rule in self.rules if matches(rule.topics, topic)]
        return (
            _first([rule.on_failure for rule in matching], self.on_failure),
            _first([rule.unroutable for rule in matching], self.unroutable),
        )


def _first(choices: list[_Choice | None], otherwise: _Choice) -> _Choice:
    return next((choice for choice in choices if choice is not None), otherwise)
