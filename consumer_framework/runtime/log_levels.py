# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes the level of a logger for a while, on an operator's order."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from consumer_framework.core.text import duration_text

from .control.schema import LogLevelReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control.schema import LogLevel

    # Calls a function after so many seconds, and returns a function that prevents it.
    CallLater: TypeAlias = Callable[[float, Callable[[], None]], Callable[[], object]]

_log = logging.getLogger(__name__)

# The loggers that have a level besides the root: see `consumer_framework.adapters.log.set_up`.
_BELOW = ("consumer_framework", "fedora_messaging")


class LogLevels:
    """The levels that operators have changed.

    Args:
        call_later: Calls a function after so many seconds; the function that it returns prevents
            the call.
        now: Returns seconds since the epoch.
    """

    def __init__(self, call_later: CallLater, now: Callable[[], float]) -> None:
        self._call_later = call_later
        self._now = now
        self._changed: dict[str, _Changed] = {}
        # A timer of a process without an event loop has a thread of its own.
        self._lock = threading.Lock()

    def change(self, request: LogLevel) -> LogLevelReport:
        """Set a level; another order for the same logger replaces the first."""
        level = logging.getLevelNamesMapping()[request.level]
        _log.warning(
            "the log level of %s is %s for %s, on an operator's order",
            request.logger or "everything",
            request.level,
            duration_text(request.seconds),
        )
        with self._lock:
            former = self._set(request.logger, level, request.seconds)
            for name in () if request.logger else _BELOW:
                self._set(name, level, request.seconds)
        until = self._now() + request.seconds
        return LogLevelReport(request.logger, request.level, logging.getLevelName(former), until)

    def _set(self, name: str, level: int, seconds: float) -> int:
        """Set the level of one logger, and return the one that comes back."""
        logger = logging.getLogger(name)
        before = self._changed.get(name)
        if before is not None:
            before.prevent()
        # A reload may have configured the log anew.
        is_ours = before is not None and logger.level == before.ordered
        former = before.former if before is not None and is_ours else logger.level
        logger.setLevel(level)
        prevent = self._call_later(seconds, lambda: self._restore(name))
        self._changed[name] = _Changed(former, level, prevent)
        return former

    def _restore(self, name: str) -> None:
        with self._lock:
            changed = self._changed.pop(name, None)
        logger = logging.getLogger(name)
        # A reload may have configured the log anew.
        if changed is not None and logger.level == changed.ordered:
            logger.setLevel(changed.former)


@dataclass(frozen=True, slots=True)
class _Changed:
    """A logger whose level an operator has changed.

    Attributes:
        former: The level that comes back.
        ordered: The level of the order.
        prevent: Prevents that the former level comes back.
    """

    former: int
    ordered: int
    prevent: Callable[[], object]
