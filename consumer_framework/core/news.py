# SPDX-License-Identifier: GPL-2.0-or-later
"""Which failures are worth a line of the log, where the same may happen thousands of times.

In five minutes each kind of news has ten lines; what comes after is counted, and the count is said
when the five minutes are over. A message whose first line was written has all its lines, so that
its life is told whole; and so has the end of every message that did not succeed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

# Seconds in which news of one kind have LINES lines.
QUIET = 300.0
LINES = 10
# Messages that have lines to come; the oldest of more is told as if it had none so far.
MOST_TOLD = 1000


class Telling(Enum):
    """How a piece of news is told."""

    FIRST = auto()
    AGAIN = auto()
    COUNTED = auto()


@dataclass(slots=True)
class _Period:
    ends: float
    lines: int = 0
    more: int = 0


class News:
    """Decides how each piece of news is told.

    Attributes:
        told: Who has a line, and more to come; oldest first.
    """

    def __init__(self) -> None:
        self._periods: dict[Hashable, _Period] = {}
        self.told: OrderedDict[Hashable, None] = OrderedDict()

    def tell(
        self,
        what: Hashable,
        who: Hashable,
        now: float,
        *,
        always: bool = False,
        is_last: bool = False,
    ) -> Telling:
        """Decide how to tell that *what* happened to *who*.

        Args:
            what: The kind of the news.
            who: The message.
            now: Seconds of a clock that never goes back. What :meth:`ended` then is forgotten.
            always: Give it a line, however many there were.
            is_last: Nothing more will be told of this message.
        """
        period = self._periods.get(what)
        telling = Telling.AGAIN
        if period is None or period.ends <= now:
            telling = Telling.FIRST
            period = self._periods[what] = _Period(now + QUIET)
        is_told = always or who in self.told
        if not is_told and period.lines >= LINES:
            period.more += 1
            return Telling.COUNTED
        period.lines += not is_told
        self.told.pop(who, None)
        if not is_last:
            self.told[who] = None
            if len(self.told) > MOST_TOLD:
                self.told.popitem(last=False)
        return telling

    def ended(self, now: float) -> dict[Any, int]:
        """Forget the news that are *now* old; returns those that were counted, and how often."""
        old = [what for what, period in self._periods.items() if period.ends <= now]
        counts = {what: self._periods.pop(what).more for what in old}
        return {what: more for what, more in counts.items() if more}

    @property
    def ends(self) -> float | None:
        """When :meth:`ended` has something to do next; None for never."""
        return min((period.ends for period in self._periods.values()), default=None)
