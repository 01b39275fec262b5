# SPDX-License-Identifier: GPL-2.0-or-later
"""The progress of ``fm-consumer publish`` on a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consumer_framework.core.text import about, plural, size

from .terminal import LiveLine

if TYPE_CHECKING:
    from consumer_framework.operate.publishing import Position, Source


@dataclass
class Progress:
    """One line on a terminal, rewritten as the publication goes on."""

    position: Position
    source: Source
    is_on: bool
    verb: str = ""
    _began: float = field(default_factory=time.monotonic)
    _line: LiveLine = field(init=False)

    def __post_init__(self) -> None:
        self._line = LiveLine(is_on=self.is_on)

    def show(self) -> None:
        """Show the progress, unless it was shown just now."""
        self._line.show(self._text)

    def clear(self) -> None:
        """Take the line away."""
        self._line.clear()

    def _text(self, now: float) -> str:
        if self.verb:
            return f"{self.source.number:,} lines {self.verb}{self._share()}"
        count, seconds = self.position.messages, max(now - self._began, 0.001)
        speed = f"{plural(count, 'message')}, {count / seconds:,.0f}/s"
        return f"{speed}{self._share()}{self._left(seconds)}"

    def _share(self) -> str:
        total = self.source.size
        return f", {size(self.source.read)}" + (f" of {size(total)}" if total else "")

    def _left(self, seconds: float) -> str:
        read, total = self.source.read, self.source.size
        if not (read and total and self.position.messages):
            return ""
        return f", {about(seconds * (total - read) / read)} left"
