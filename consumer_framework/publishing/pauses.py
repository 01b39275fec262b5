# SPDX-License-Identifier: GPL-2.0-or-later
"""The pauses of topics: nothing is sent to an exchange with a topic for a time.

The broker has refused a message for its exchange or topic: the exchange is missing, or the account
may not publish there. So another message of the same topic would be refused too, until an
administrator has done something. Each pause is longer than the one before it; a message that is
sent ends them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .policy import LONGEST, TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.ports import Clock

    from .message import Outgoing


@dataclass
class _Pause:
    """The end of a pause, and the number of pauses in a row."""

    until: float
    times: int = 1


class TopicPauses:
    """The pauses of one relay. One thread changes them; others may read :attr:`current`.

    Args:
        clock: That of the relay.
        chance: Returns a random number from 0 to 1, for jitter.
    """

    def __init__(self, clock: Clock, chance: Callable[[], float]) -> None:
        self._clock = clock
        self._chance = chance
        self._pauses: dict[tuple[str, str], _Pause] = {}

    @property
    def current(self) -> dict[tuple[str, str], float]:
        """The end of each pause, in seconds since the epoch, by exchange and topic."""
        now = self._clock.time()
        return {key: one.until for key, one in list(self._pauses.items()) if one.until > now}

    def end(self, message: Outgoing) -> float | None:
        """Return the end of the pause of the topic of *message*; None without a pause."""
        pause = self._pauses.get(_key(message))
        return None if pause is None or pause.until <= self._clock.time() else pause.until

    def begin(self, message: Outgoing) -> float:
        """Begin a pause of the topic of *message*, and return its end."""
        before = self._pauses.get(_key(message))
        times = 1 if before is None else before.times + 1
        pause = _Pause(self._clock.time() + TOPIC.after(times, self._chance()), times)
        self._pauses[_key(message)] = pause
        return pause.until

    def lift(self, message: Outgoing) -> None:
        """Forget the pauses of the topic of *message*, because it was sent."""
        self._pauses.pop(_key(message), None)

    def forget(self) -> None:
        """Forget the pauses that ended long ago: such a topic begins anew.

        No pause is so far ahead, unless the clock was set back.
        """
        now = self._clock.time()
        ended = [key for key, pause in self._pauses.items() if abs(pause.until - now) > LONGEST]
        for key in ended:
            del self._pauses[key]


def _key(message: Outgoing) -> tuple[str, str]:
    return message.exchange, message.topic
