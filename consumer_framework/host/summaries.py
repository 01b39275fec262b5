# SPDX-License-Identifier: GPL-2.0-or-later
"""Says how often something happened that has no line of its own any more."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from consumer_framework.core.disposition import Ack, Halt, Quarantine, Reject
from consumer_framework.core.fields import DISPOSITION, DISPOSITIONS, FINGERPRINT
from consumer_framework.core.news import News, Telling

from .wording import fate_word

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock

    Later = Callable[[float, Callable[[], None]], Any]

_log = logging.getLogger(__name__)

_TRACE = "trace"


class Summaries:
    """Decides how a delivery's news are told, and sums up those that are not.

    Args:
        clock: The time.
        later: Calls a function after so many seconds, such as a reactor's ``callLater``; None to
            sum up when the next news come.

    Attributes:
        told: The messages, as :func:`who` has them, that have a line, and more to come.
    """

    def __init__(self, clock: Clock, later: Later | None = None) -> None:
        self._clock = clock
        self._later = later
        self._timer: Any = None
        self._news = News()
        self.told: Collection[Hashable] = self._news.told

    def tell(self, delivery: Delivery, disposition: Disposition, cause: str) -> Telling:
        """Decide how to tell that *disposition* is what becomes of *delivery* because of *cause*.

        The end of a message that did not succeed is told each time, and so is an operator's replay.
        """
        is_sad_end = isinstance(disposition, Quarantine | Reject | Halt)
        now = self._clock.monotonic()
        self._sum_up(now)
        telling = self._news.tell(
            (type(disposition), cause),
            who(delivery),
            now,
            always=is_sad_end or delivery.replayed,
            is_last=is_sad_end or isinstance(disposition, Ack),
        )
        self._set_timer(now)
        return telling

    def has_traced(self, cause: str) -> bool:
        """Whether a traceback of *cause* was logged a short while ago; it counts as logged now."""
        now = self._clock.monotonic()
        telling = self._news.tell((_TRACE, cause), None, now, always=True, is_last=True)
        return telling is not Telling.FIRST

    def close(self) -> None:
        """Sum up everything; nothing is told afterwards."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._sum_up(math.inf)

    def _set_timer(self, now: float) -> None:
        ends = self._news.ends
        if self._later is not None and self._timer is None and ends is not None:
            self._timer = self._later(ends - now, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        self._sum_up(now)
        self._set_timer(now)

    def _sum_up(self, now: float) -> None:
        for (kind, cause), more in self._news.ended(now).items():
            _log.warning(
                "%s: %d more times a message was %s, without a line of its own",
                cause,
                more,
                fate_word(kind),
                extra={DISPOSITION: DISPOSITIONS[kind], FINGERPRINT: cause},
            )


def who(delivery: Delivery) -> Hashable:
    """What the news know a message by."""
    return delivery.queue, delivery.routing_key, delivery.message_id
