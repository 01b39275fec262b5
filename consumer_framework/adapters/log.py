# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: readable on a terminal, with priorities in the journal, without secrets and floods.

:func:`set_up` configures it for the process, and :func:`hide_secrets` redacts every record.
:class:`LogThrottle` keeps thousands of similar failures from filling the log.
"""

from __future__ import annotations

import errno
import logging
import logging.config
import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from consumer_framework.core.attempt import TRACEBACK_LIMIT, bounded
from consumer_framework.core.disposition import SETTLE_RULES
from consumer_framework.core.log_fields import DISPOSITION, FINGERPRINT, priority_of
from consumer_framework.core.secrets import redact
from consumer_framework.core.text import clipped, printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Clock

    # Such as a reactor's.
    CallLater = Callable[[float, Callable[[], None]], Any]

_TERMINAL_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_JOURNAL_FORMAT = "%(name)s: %(message)s"

# pika reports one lost connection in a dozen lines and tracebacks. Their substance reaches the
# framework's own log, and so does that of the layers between. alembic tells each of its plugins.
_QUIET = {
    "alembic.runtime.plugins": logging.WARNING,
    "fedora_messaging.twisted": logging.WARNING,
    "pika": logging.CRITICAL,
    "twisted": logging.WARNING,
}

# Upstream's logger, which every configuration file names, and ours, which hardly one does.
_UPSTREAM = "fedora_messaging"
_OWN = "consumer_framework"
# The loggers whose messages contain text that strangers published.
_STRANGERS_TEXT = (_OWN, _UPSTREAM, "pika", "twisted")
# Characters.
_LONGEST_MESSAGE = 32_000

# Seconds in which a kind of record has LINES lines.
QUIET = 300.0
LINES = 10
# Messages that have lines to come. The oldest one beyond that counts as if it had none so far.
MOST_OPEN = 1000


class OwnLogger(logging.Logger):
    """A logger of ours: ``disable_existing_loggers`` in somebody's configuration leaves it on.

    Some callbacks configure logging when they are imported, or later. That would silence the
    framework, tracebacks of the callbacks' own failures included.
    """

    @property
    def disabled(self) -> bool:
        """Return False, always."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Ignore *value*."""


class RedactedRecord(logging.LogRecord):
    """A record that shows no secret, whatever formats it, and has a limited length.

    The framework and the libraries below it log text that strangers published: no control
    character of theirs reaches a terminal.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.redact_exception()

    def redact_exception(self) -> None:
        """Replace the exception by its text if that would show too much, or has a secret."""
        if self.exc_info and self.exc_info[0] is not None:
            shown = bounded(self.exc_info[1])
            text = logging.Formatter().formatException((type(shown), shown, self.exc_info[2]))
            # A SyntaxError shows a line of its source, which may be text that was published.
            safe = clipped(printable_lines(redact(text)), TRACEBACK_LIMIT)
            if safe != text or shown is not self.exc_info[1]:
                # Formatters prefer this text to the exception.
                self.exc_text, self.exc_info = safe, None

    def getMessage(self) -> str:  # noqa: N802 -- logging's name
        """Return the message, with its arguments in it."""
        text = redact(super().getMessage())
        if self.name.partition(".")[0] in _STRANGERS_TEXT:
            return clipped(printable_lines(text), _LONGEST_MESSAGE)
        return text


class PriorityFormatter(logging.Formatter):
    """Puts the priority before every line that another formatter makes of a record."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines, tracebacks included, each with its priority."""
        # sd-daemon(3).
        prefix = f"<{priority_of(record.levelno)}>"
        lines = self._inner.format(record).splitlines() or [""]
        return "\n".join(f"{prefix}{line}" for line in lines)


class Occurrence(NamedTuple):
    """Tells a :class:`LogThrottle` about a record, which has this as its attribute ``occurrence``.

    Attributes:
        throttle: The throttle; others of the same logger let the record pass.
        disposition: The disposition of the message.
        cause: The cause of it. Records with the same disposition and cause are of one kind.
        message: The message, as a key.
        repeated_level: The level of the records of this kind after the first.
        always: It has a line, whatever the number of lines before it.
        is_last: It is the last record about the message.
        error: The exception whose traceback is logged.
    """

    throttle: LogThrottle
    disposition: type[Disposition]
    cause: str
    message: Hashable
    repeated_level: int
    always: bool = False
    is_last: bool = False
    error: BaseException | None = None


@dataclass(slots=True)
class _Period:
    ends: float
    lines: int = 0
    counted: int = 0


class LogThrottle(logging.Filter):
    """Limits the lines about similar failures, and sums up the others.

    In five minutes each kind of record has ten lines; later records are counted, and the count is
    logged when the five minutes are over. A message whose first line was logged has all its lines,
    so that its life is told whole, and so has an occurrence that always has one. The first record
    of a kind keeps its level. Each cause has one traceback in five minutes.

    Args:
        logger: The logger that the filter is attached to. Records without an
            :class:`Occurrence` pass.
        clock: The time.
        call_later: Calls a function after so many seconds; None to log counts with the next record.

    Attributes:
        open_messages: The messages that have a line, and more to come; oldest first.
    """

    def __init__(
        self, logger: logging.Logger, clock: Clock, call_later: CallLater | None = None
    ) -> None:
        super().__init__()
        self.open_messages: OrderedDict[Hashable, None] = OrderedDict()
        self._logger = logger
        self._clock = clock
        self._call_later = call_later
        self._timer: Any = None
        self._periods: dict[tuple[type[Disposition] | None, str], _Period] = {}
        logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a record that has no line; set the level and traceback of others."""
        occurrence: Occurrence | None = vars(record).get("occurrence")
        if occurrence is None or occurrence.throttle is not self:
            return True
        del record.occurrence  # type: ignore[attr-defined]
        now = self._clock.monotonic()
        self._log_counts(now)
        level = self._level(record, occurrence, now)
        self._set_timer(now)
        if level != record.levelno:
            record.levelno, record.levelname = level, logging.getLevelName(level)
        return self._logger.isEnabledFor(level)

    def _level(self, record: logging.LogRecord, occurrence: Occurrence, now: float) -> int:
        period, is_first = self._period(occurrence.disposition, occurrence.cause, now)
        is_due = occurrence.always or occurrence.message in self.open_messages
        if not is_due and period.lines >= LINES:
            period.counted += 1
            return logging.DEBUG
        period.lines += not is_due
        self.open_messages.pop(occurrence.message, None)
        if not occurrence.is_last:
            self.open_messages[occurrence.message] = None
            if len(self.open_messages) > MOST_OPEN:
                self.open_messages.popitem(last=False)
        if not is_first:
            return occurrence.repeated_level
        error = occurrence.error
        if error is not None and self._period(None, occurrence.cause, now)[1]:
            record.exc_info = (type(error), error, error.__traceback__)
            if isinstance(record, RedactedRecord):
                record.redact_exception()
        return record.levelno

    def _period(
        self, disposition: type[Disposition] | None, cause: str, now: float
    ) -> tuple[_Period, bool]:
        """Return the period of a kind, and True if it begins; None stands for tracebacks."""
        kind = disposition, cause
        period = self._periods.get(kind)
        if period is not None and period.ends > now:
            return period, False
        self._periods[kind] = _Period(now + QUIET)
        return self._periods[kind], True

    def close(self) -> None:
        """Log all counts, and detach the filter."""
        self._log_counts(math.inf)
        self.detach()

    def detach(self) -> None:
        """Detach the filter, and forget everything."""
        self._periods.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._logger.removeFilter(self)

    def _set_timer(self, now: float) -> None:
        if self._call_later is not None and self._timer is None and self._periods:
            ends = min(period.ends for period in self._periods.values())
            self._timer = self._call_later(ends - now, self._period_ended)

    def _period_ended(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        self._log_counts(now)
        self._set_timer(now)

    def _log_counts(self, now: float) -> None:
        old = [kind for kind, period in self._periods.items() if period.ends <= now]
        for kind, period in [(kind, self._periods.pop(kind)) for kind in old]:
            disposition, cause = kind
            if disposition is not None and period.counted:
                words = SETTLE_RULES[disposition].words
                self._logger.warning(
                    "%s: %d more times a message was %s, without a line of its own",
                    cause,
                    period.counted,
                    words.verb,
                    extra={DISPOSITION: words.field, FINGERPRINT: cause},
                )


def set_up(
    log_config: Mapping[str, Any] | None,
    is_journal: Callable[[int], bool],
    journal: logging.Handler | None = None,
    level: int = logging.INFO,
) -> None:
    """Configure :mod:`logging` for the process.

    The framework logs with the level and the handlers of ``fedora_messaging``, unless
    *log_config* names ``consumer_framework``.

    Args:
        log_config: ``[log_config]`` as the file has it (:func:`logging.config.dictConfig`); None
            for the framework's own: everything from *level* up, to standard error.
        is_journal: Tells whether a file descriptor leads to the journal. Lines that go there
            carry their priority, whoever configured the handler.
        journal: The handler that replaces standard error, if *log_config* is None.
        level: The lowest level that is logged, if *log_config* is None.

    Raises:
        ValueError: :mod:`logging.config` refuses *log_config*.
    """
    if log_config is None:
        own = [journal] if journal is not None else None
        logging.basicConfig(level=level, format=_TERMINAL_FORMAT, force=True, handlers=own)
        for name, quiet in _QUIET.items():
            logging.getLogger(name).setLevel(quiet)
        # A callback may change the level of the root logger later.
        logging.getLogger(_OWN).setLevel(level)
        for handler in logging.root.handlers:
            if is_journal(_descriptor(handler)):
                handler.setFormatter(logging.Formatter(_JOURNAL_FORMAT))
    else:
        logging.config.dictConfig(dict(log_config))
    if not _names_own(log_config):
        # Both walk up from a logger to its parent: the search for a level, and for handlers.
        logging.getLogger(_OWN).parent = logging.getLogger(_UPSTREAM)
    adapt(is_journal)


def adapt(is_journal: Callable[[int], bool]) -> None:
    """Keep the framework's log readable, whoever configured :mod:`logging` last.

    Call it after an author's code ran, which may have done so.

    Args:
        is_journal: As for :func:`set_up`.
    """
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == _OWN and type(logger) is logging.Logger:
            logger.__class__ = OwnLogger
    fallbacks = _fallbacks(handlers())
    for handler in (h for h in [*handlers(), *fallbacks] if type(h) is logging.StreamHandler):
        if isinstance(handler.formatter, PriorityFormatter):
            continue
        if is_journal(_descriptor(handler)):
            inner = handler.formatter or logging.Formatter(_JOURNAL_FORMAT)
            handler.setFormatter(PriorityFormatter(inner))
        elif handler.formatter is None and handler in fallbacks:
            handler.setFormatter(logging.Formatter(_TERMINAL_FORMAT))


def _names_own(log_config: Mapping[str, Any] | None) -> bool:
    loggers = log_config.get("loggers") if log_config is not None else None
    return isinstance(loggers, dict) and _OWN in loggers


def rehearse(log_config: Mapping[str, Any]) -> None:
    """Configure logging by *log_config* without opening its files, and undo all of it.

    Raises:
        Exception: As :func:`set_up` would; FileNotFoundError if the directory of a file is not
            there.
    """
    named = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(each for each in named if isinstance(each, logging.Logger))]
    before = {logger: dict(vars(logger)) for logger in loggers}
    handlers_before = [list(logger.handlers) for logger in loggers]
    try:
        logging.config.dictConfig(_without_files(log_config))
    finally:
        added = [each for each in logging.root.manager.loggerDict if _is_new(each, before)]
        for logger, own in zip(loggers, handlers_before, strict=True):
            vars(logger).update(before[logger])
            logger.handlers = own
        for name in added:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [], True
            logger.setLevel(logging.NOTSET)


def _is_new(name: str, before: Mapping[logging.Logger, object]) -> bool:
    return logging.getLogger(name) not in before


def _without_files(log_config: Mapping[str, Any]) -> dict[str, Any]:
    handlers = log_config.get("handlers")
    if not isinstance(handlers, dict):
        return dict(log_config)
    return {**log_config, "handlers": {key: _late(each) for key, each in handlers.items()}}


def _late(handler: Any) -> Any:
    kind = handler.get("class") if isinstance(handler, dict) else None
    if not isinstance(kind, str):
        return handler
    resolved = logging.config.BaseConfigurator({}).resolve(kind)
    if not (isinstance(resolved, type) and issubclass(resolved, logging.FileHandler)):
        return handler
    file = Path(handler["filename"]).absolute()
    file.parent.resolve(strict=True)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    return {**handler, "delay": True}


def forget(log_config: Mapping[str, Any] | None) -> None:
    """Undo the changes of loggers by :func:`set_up`, before a call with another configuration.

    Changes of other loggers by the author's code stay.

    Args:
        log_config: The argument of that call of :func:`set_up`.
    """
    table = log_config.get("loggers") if log_config is not None else _QUIET
    logging.getLogger(_OWN).parent = logging.root
    for name in {*(table if isinstance(table, dict) else ()), _OWN}:
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).disabled = False


def hide_secrets() -> None:
    """Let every record of the process, of whatever logger, be a :class:`RedactedRecord`."""
    logging.setLogRecordFactory(RedactedRecord)


def handlers() -> list[logging.Handler]:
    """Return all handlers that are in use."""
    named = (logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict))
    loggers = [logging.root, *named]
    return list(
        {id(handler): handler for logger in loggers for handler in logger.handlers}.values()
    )


def _fallbacks(used: list[logging.Handler]) -> list[logging.Handler]:
    found = (getattr(handler, "fallback", None) for handler in used)
    return [handler for handler in found if isinstance(handler, logging.Handler)]


def _descriptor(handler: logging.Handler) -> int:
    try:
        return int(handler.stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return -1
