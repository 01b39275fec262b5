# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks to the service manager: sd_notify(3), and what is known of the journal."""

from __future__ import annotations

import os

import sdnotify


class SystemdNotifier:
    """A :class:`.Notifier` for the socket that ``$NOTIFY_SOCKET`` names; silent without one."""

    def __init__(self) -> None:
        self._socket = sdnotify.SystemdNotifier() if "NOTIFY_SOCKET" in os.environ else None

    def ready(self, status: str) -> None:
        """Send ``READY=1`` with *status*."""
        self._send("READY=1", status)

    def status(self, status: str) -> None:
        """Send *status* alone."""
        self._send("", status)

    def stopping(self, status: str) -> None:
        """Send ``STOPPING=1`` with *status*."""
        self._send("STOPPING=1", status)

    def _send(self, assignment: str, status: str) -> None:
        if self._socket is not None:
            lines = [assignment, f"STATUS={one_ascii_line(status)}"]
            self._socket.notify("\n".join(line for line in lines if line))


def one_ascii_line(text: str) -> str:
    """Make *text* safe for a notification.

    sdnotify encodes latin-1 and swallows the error: one character outside it would lose the
    whole datagram, ``READY=1`` included. A newline would start another assignment.
    """
    return " ".join(text.split()).encode("ascii", "replace").decode("ascii")


def is_journal(descriptor: int) -> bool:
    """Whether *descriptor* leads to the journal (systemd.exec(5), ``$JOURNAL_STREAM``)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
