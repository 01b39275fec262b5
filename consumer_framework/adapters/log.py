# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets logging up: readable on a terminal, with priorities in the journal."""

from __future__ import annotations

import logging
import logging.config
from typing import TYPE_CHECKING, Any

from consumer_framework.core.priority import priority_of
from consumer_framework.core.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TERMINAL_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_JOURNAL_FORMAT = "%(name)s: %(message)s"

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
        # sd-daemon(3).
        prefix = f"<{priority_of(record.levelno)}>"
        lines = self._inner.format(record).splitlines() or [""]
        return "\n".join(f"{prefix}{line}" for line in lines)


def set_up(
    log_config: Mapping[str, Any] | None,
    is_journal: Callable[[int], bool],
    journal: logging.Handler | None = None,
) -> None:
    """Configure :mod:`logging` for the process.

    Args:
        log_config: ``[log_config]`` as the file has it (:func:`logging.config.dictConfig`); None
            for the framework's own: everything from INFO up, to standard error.
        is_journal: Tells whether a file descriptor leads to the journal. Lines that go there
            carry their priority, whoever configured the handler.
        journal: Takes everything in the place of standard error, if *log_config* is None.

    Raises:
        ValueError: *log_config* is not one that :mod:`logging.config` takes.
    """
    if log_config is None:
        own = [journal] if journal is not None else None
        logging.basicConfig(level=logging.INFO, format=_TERMINAL_FORMAT, force=True, handlers=own)
        for name, level in _QUIET.items():
            logging.getLogger(name).setLevel(level)
    else:
        logging.config.dictConfig(dict(log_config))
        _enable_own_loggers()
    fallbacks = _fallbacks(handlers())
    for handler in (h for h in [*handlers(), *fallbacks] if type(h) is logging.StreamHandler):
        if is_journal(_descriptor(handler)):
            inner = handler.formatter or logging.Formatter(_JOURNAL_FORMAT)
            if log_config is None:
                inner = logging.Formatter(_JOURNAL_FORMAT)
            handler.setFormatter(PriorityFormatter(inner))
        elif handler.formatter is None and handler in fallbacks:
            handler.setFormatter(logging.Formatter(_TERMINAL_FORMAT))


def forget(log_config: Mapping[str, Any] | None) -> None:
    """Undo what :func:`set_up` did to loggers, before it is called with another configuration.

    What the author's code did to other loggers stays.

    Args:
        log_config: What :func:`set_up` was called with.
    """
    table = log_config.get("loggers") if log_config is not None else _QUIET
    for name in table if isinstance(table, dict) else ():
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


def _enable_own_loggers() -> None:
    """``disable_existing_loggers``, which is the default, silences what was imported before."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "consumer_framework":
            logging.getLogger(name).disabled = False


def handlers() -> list[logging.Handler]:
    """All that are in use."""
    named = (logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict))
    loggers = [logging.root, *named]
    return list(
        {id(handler): handler for logger in loggers for handler in logger.handlers}.values()
    )


def _fallbacks(used: list[logging.Handler]) -> list[logging.Handler]:
    """What handlers use that cannot do their work."""
    found = (getattr(handler, "fallback", None) for handler in used)
    return [handler for handler in found if isinstance(handler, logging.Handler)]


def _descriptor(handler: logging.StreamHandler[Any]) -> int:
    try:
        return int(handler.stream.fileno())
    except (AttributeError, OSError, ValueError):
        return -1
