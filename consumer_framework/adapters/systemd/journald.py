# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends log records to systemd's journal with fields of their own.

The protocol is https://systemd.io/JOURNAL_NATIVE_PROTOCOL: a datagram for each entry, or a sealed
file in memory where the entry is too large for one. python3-systemd would do it too, and needs a C
library that a virtual environment cannot have.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import re
import socket
import sys
from typing import TYPE_CHECKING

from consumer_framework.author import heartbeat
from consumer_framework.core.log_fields import INSTANCE, fields_of_all, priority_of
from consumer_framework.core.secrets import redact_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SOCKET = "/run/systemd/journal/socket"

# Seconds that one line may wait for a journal that does not read; the caller may be the reactor.
SEND_TIMEOUT = 0.2

# systemd.journal-fields(7): the names that the journal takes from programs. Names that begin with
# "_" are its own.
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def entry(fields: Iterable[tuple[str, str]]) -> bytes:
    """Serialize *fields*; a name may come more than once."""
    lines = bytearray()
    for name, text in fields:
        value = text.encode(errors="backslashreplace")
        if b"\n" in value:
            length = len(value).to_bytes(8, "little")
            lines += b"%s\n%s%s\n" % (name.encode(), length, value)
        else:
            lines += b"%s=%s\n" % (name.encode(), value)
    return bytes(lines)


class Sender:
    """Sends entries to the journal.

    Args:
        path: The journal's socket.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, data: bytes) -> None:
        """Send an entry.

        Raises:
            OSError: Nobody reads it: there is no journal, it is just starting again, or it hangs.
        """
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(SEND_TIMEOUT)
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(self._socket, data)

    def _send_as_file(self, opened: socket.socket, data: bytes) -> None:
        descriptor = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            # The journal maps it, and must not be cheated meanwhile.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            opened.sendmsg([], [passed], 0, self._path)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the socket; the next entry opens one again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def is_reachable(path: str = SOCKET) -> bool:
    """Return True if a journal reads the socket at *path*; it ignores the empty entry sent."""
    sender = Sender(path)
    try:
        sender.send(b"")
    except OSError:
        return False
    else:
        return True
    finally:
        sender.close()


class JournalHandler(logging.Handler):
    """Sends log records to systemd's journal with structured fields.

    A record that an author's handler logs carries the fields of its message. Values of ``extra``
    become fields too, if their names are in capitals. While the journal cannot be reached, records
    go to standard error.

    Args:
        level: The lowest level that is sent.
        instance: The value of ``FM_INSTANCE`` and ``SYSLOG_IDENTIFIER``; ``fm-consumer run`` sets
            it.
        path: The journal's socket.

    Attributes:
        fallback: Gets the records that the journal does not take.
    """

    def __init__(
        self, level: int | str = logging.NOTSET, instance: str = "", path: str = SOCKET
    ) -> None:
        super().__init__(level)
        self.instance = instance
        self.fallback = logging.StreamHandler(sys.stderr)
        self.setFormatter(logging.Formatter("%(message)s"))
        self._sender = Sender(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*, tracebacks included; never raises."""
        try:
            data = entry(self._fields(record))
        except Exception:  # noqa: BLE001 -- as every handler of the standard library
            self.handleError(record)
            return
        try:
            self._sender.send(data)
        except OSError:
            self.fallback.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._sender.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        identifier = f"fm-consumer@{self.instance}" if self.instance else "fm-consumer"
        own = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(priority_of(record.levelno)),
            "SYSLOG_IDENTIFIER": identifier,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        yield from own.items()
        if self.instance:
            yield INSTANCE, self.instance
        extra = {name: value for name, value in vars(record).items() if _NAME.fullmatch(name)}
        for name, value in {**fields_of_all(heartbeat.deliveries()), **extra}.items():
            if name not in own:
                values = value if isinstance(value, list) else [value]
                # The text is redacted where the record is made.
                yield from ((name, redact_value(name, str(each))) for each in values)
