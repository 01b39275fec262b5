# SPDX-License-Identifier: GPL-2.0-or-later
"""Notifies the service manager (sd_notify(3)), and recognizes its journal."""

from __future__ import annotations

import logging
import os
import time

import sdnotify

from consumer_framework.core.secrets import redact
from consumer_framework.core.text import clipped, printable

_log = logging.getLogger(__name__)


# Seconds. The socket's queue is short; a service manager that does not read it must not stop the
# reactor.
SEND_TIMEOUT = 1.0
# Characters. Several assignments that could not be sent before may stand before it.
LONGEST_STATUS = 2000


class SystemdNotifier:
    """A :class:`.Notifier` for the socket that ``$NOTIFY_SOCKET`` names; silent without one.

    A notification that could not be sent goes out with the next one.

    Attributes:
        watchdog_seconds: The time of ``$WATCHDOG_USEC`` in seconds; 0 if this process has no
            watchdog (sd_watchdog_enabled(3)).
    """

    def __init__(self) -> None:
        self.watchdog_seconds = _watchdog_seconds()
        self._systemd: sdnotify.SystemdNotifier | None = None
        self._unsent: list[str] = []
        self._status = ""
        if "NOTIFY_SOCKET" in os.environ:
            self._systemd = _connect()

    def ready(self, status: str) -> None:
        """Send ``READY=1`` with *status*."""
        self._send("READY=1", status)

    def status(self, status: str) -> None:
        """Send *status*, unless it was sent last."""
        if self._unsent or status != self._status:
            self._send("", status)

    def reloading(self, status: str) -> None:
        """Send ``RELOADING=1`` with the time, which systemd compares with that of its signal."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}", status)

    def stopping(self, status: str) -> None:
        """Send ``STOPPING=1`` with *status*."""
        self._send("STOPPING=1", status)

    def watchdog(self) -> None:
        """Send ``WATCHDOG=1``; one that cannot be sent is not sent later."""
        self._notify("WATCHDOG=1")

    def trigger(self, status: str) -> None:
        """Send ``WATCHDOG=trigger`` with *status* (systemd 243)."""
        self._send("WATCHDOG=trigger", status)

    def extend(self, seconds: float) -> None:
        """Send ``EXTEND_TIMEOUT_USEC=``; one that cannot be sent is not sent later."""
        self._notify(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def restart_reset(self) -> None:
        """Send ``RESTART_RESET=1``, which systemd knows from 258 on."""
        self._send("RESTART_RESET=1", self._status)

    def close(self) -> None:
        """Close the socket; later notifications are ignored."""
        systemd, self._systemd = self._systemd, None
        if systemd is not None:
            systemd.socket.close()

    def _send(self, assignment: str, status: str) -> None:
        if self._systemd is None:
            return
        if assignment and assignment not in self._unsent:
            self._unsent.append(assignment)
        if self._notify(*self._unsent, f"STATUS={one_ascii_line(status)}"):
            self._unsent.clear()
            self._status = status

    def _notify(self, *lines: str) -> bool:
        """Send a notification; False if there is no service manager, or it does not take it."""
        if self._systemd is None:
            return False
        try:
            self._systemd.notify("\n".join(lines))
        except OSError as error:
            _log.warning("the service manager was not told %s: %s", lines[0], error)
            return False
        return True


def _watchdog_seconds() -> float:
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    process = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if "NOTIFY_SOCKET" not in os.environ or process != str(os.getpid()):
        return 0.0
    # systemd writes numbers only.
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0


def _connect() -> sdnotify.SystemdNotifier | None:
    try:
        # debug: errors are raised here, and not swallowed there.
        notifier = sdnotify.SystemdNotifier(debug=True)
    except (OSError, IndexError) as error:
        _log.warning("the service manager's $NOTIFY_SOCKET cannot be used: %s", error)
        return None
    notifier.socket.settimeout(SEND_TIMEOUT)
    return notifier


def one_ascii_line(text: str) -> str:
    """Make *text* safe as the value of ``STATUS=``, whatever characters it has.

    One character beyond latin-1 makes sdnotify lose the whole notification, ``READY=1`` included,
    and systemd refuses a status that is not UTF-8, as latin-1 is not. A newline would begin another
    assignment. systemd ignores a notification of more than 4,096 bytes.
    """
    line = printable(" ".join(redact(text).split()))
    return clipped(line.encode("ascii", "replace").decode("ascii"), LONGEST_STATUS)


def is_journal(descriptor: int) -> bool:
    """Return True if *descriptor* leads to the journal (systemd.exec(5), ``$JOURNAL_STREAM``)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
