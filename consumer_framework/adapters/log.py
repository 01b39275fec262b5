# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets logging up: readable on a terminal, with priorities in the journal."""

from __future__ import annotations

import logging
import logging.config
from typing import TYPE_CHECKING, Any

from consumer_framework.core.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TERMINAL_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_JOURNAL_FORMAT = "%(name)s: %(message)s"

# sd-daemon(3): the kernel's log levels as a prefix of each line.
_PRIORITIES = (
    (logging.CRITICAL, "<2>"),
    (logging.ERROR, "<3>"),
    (logging.WARNING, "<4>"),
    (logging.INFO, "<6>"),
)
_LOWEST_PRIORITY = "<7>"

# pika reports one lost connection in a dozen lines and tracebacks; what matters of them reaches
# the framework's own log. The chatter of the layers between likewise.
_QUIET = {
    "fedora_messaging.twisted": logging.WARNING,
    "pika": logging.CRITICAL,
    "twisted": logging.WARNING,
}


class RedactedRecord(logging.LogRecord):
    """A record that shows no secret, whoever formats it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            text = logging.Formatter().formatException(self.exc_info)
            if (shown := redact(text)) != text:
                # Formatters take this text, where there is one, for that of the exception.
                self.exc_text, self.exc_info = shown, None

    def getMessage(self) -> str:  # noqa: N802 -- logging's name
        """Return the message, with its arguments in it."""
        return redact(super().getMessage())


class PriorityFormatter(logging.Formatter):
    """Puts the priority before every line of what another formatter makes of a record."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines, tracebacks included, each with its priority."""
        prefix = priority_prefix(record.levelno)
        lines = self._inner.format(record).splitlines() or [""]
        return "\n".join(f"{prefix}{line}" for line in lines)


def priority_prefix(level: int) -> str:
    """Return the journal's prefix for one of :mod:`logging`'s levels."""
    for threshold, prefix in _PRIORITIES:
        if level >= threshold:
            return prefix
    return _LOWEST_PRIORITY


def set_up(log_config: Mapping[str, Any] | None, is_journal: Callable[[int], bool]) -> None:
    """Configure :mod:`logging` for the process.

    Args:
        log_config: ``[log_config]`` as the file has it (:func:`logging.config.dictConfig`); None
            for the framework's own: everything from INFO up, to standard error.
        is_journal: Tells whether a file descriptor leads to the journal. Lines that go there
            carry their priority, whoever configured the handler.

    Raises:
        ValueError: *log_config* is not one that :mod:`logging.config` takes.
    """
    if log_config is None:
        logging.basicConfig(level=logging.INFO, format=_TERMINAL_FORMAT, force=True)
        for name, level in _QUIET.items():
            logging.getLogger(name).setLevel(level)
    else:
        logging.config.dictConfig(dict(log_config))
        _enable_own_loggers()
    for handler in _stream_handlers():
        if is_journal(_descriptor(handler)):
            inner = handler.formatter or logging.Formatter(_JOURNAL_FORMAT)
            if log_config is None:
                inner = logging.Formatter(_JOURNAL_FORMAT)
            handler.setFormatter(PriorityFormatter(inner))


def hide_secrets() -> None:
    """Let every record of the process, of whatever logger, be a :class:`RedactedRecord`."""
    logging.setLogRecordFactory(RedactedRecord)


def _enable_own_loggers() -> None:
    """``disable_existing_loggers``, which is the default, silences what was imported before."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "consumer_framework":
            logging.getLogger(name).disabled = False


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    named = (logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict))
    loggers = [logging.root, *named]
    handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}
    return [h for h in handlers.values() if type(h) is logging.StreamHandler]


def _descriptor(handler: logging.StreamHandler[Any]) -> int:
    try:
        return int(handler.stream.fileno())
    except (AttributeError, OSError, ValueError):
        return -1
