# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches for memory pressure as systemd has its services do it: https://systemd.io/MEMORY_PRESSURE."""

from __future__ import annotations

import base64
import binascii
import contextlib
import ctypes
import gc
import os
import select
import socket
import stat
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WATCH = "MEMORY_PRESSURE_WATCH"
WRITE = "MEMORY_PRESSURE_WRITE"
OFF = "/dev/null"

# Seconds between two looks at what says that there is pressure; it may say so all the time.
PAUSE = 1.0
_CHUNK = 65536


class PressureWatch:
    """Calls a function when there is memory pressure, at most once a second.

    asyncio cannot wait for the exceptional conditions that the kernel's pressure files report
    (``POLLPRI``), so that a thread does.

    Args:
        pressed: Called in that thread.
        lost: Called in that thread when there is nothing to watch any more.
    """

    def __init__(
        self, pressed: Callable[[], object], lost: Callable[[], object] = lambda: None
    ) -> None:
        self._pressed = pressed
        self._lost = lost
        self._descriptor = -1
        self._wake, self._waker = -1, -1
        self._thread: threading.Thread | None = None

    def start(self, environment: Mapping[str, str] = os.environ) -> bool:
        """Watch what *environment* names; returns whether it names something.

        Raises:
            OSError: It cannot be watched.
            ValueError: What is to be written to it is not base64.
        """
        path = environment.get(WATCH, OFF)
        if path in (OFF, ""):
            return False
        try:
            trigger = base64.b64decode(environment.get(WRITE, ""), validate=True)
        except binascii.Error as error:
            raise ValueError(f"${WRITE}: {error}") from None
        self._descriptor, events = _opened(path, trigger)
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        name = "memory-pressure"
        self._thread = threading.Thread(target=self._watch, args=(events,), name=name, daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        """Watch no more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.close(self._waker)
            thread.join()

    def _watch(self, events: int) -> None:
        waiting, stopping = select.poll(), select.poll()
        waiting.register(self._descriptor, events)
        waiting.register(self._wake, 0)
        stopping.register(self._wake, 0)
        try:
            while not stopping.poll(0):
                found = dict(waiting.poll()).get(self._descriptor, 0)
                if found and not self._is_pressure(found, events):
                    self._lost()
                    return
                if found:
                    self._pressed()
                    stopping.poll(PAUSE * 1000)
        finally:
            os.close(self._descriptor)
            os.close(self._wake)

    def _is_pressure(self, found: int, events: int) -> bool:
        if events == select.POLLPRI:
            # The control group is gone where there is an error.
            return not found & select.POLLERR
        try:
            return bool(os.read(self._descriptor, _CHUNK))
        except BlockingIOError:
            return True
        except OSError:
            return False


def free_memory() -> None:
    """Give the kernel back what is not needed; takes up to a tenth of a second."""
    gc.collect()
    # glibc's; other C libraries have none.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _opened(path: str, trigger: bytes) -> tuple[int, int]:
    """Open *path* and write *trigger* to it; returns the descriptor and what to wait for."""
    mode = os.stat(path).st_mode  # noqa: PTH116 -- the others take a path too
    if stat.S_ISSOCK(mode):
        descriptor, events = _connected(path), select.POLLIN
    elif stat.S_ISFIFO(mode):
        # For writing too: it has no end then when who writes to it closes it. What it is triggered
        # with would come back to us.
        trigger = b""
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        events = select.POLLIN
    else:
        access = os.O_RDWR if trigger else os.O_RDONLY
        descriptor = os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC)
        events = select.POLLPRI
    try:
        if trigger:
            os.write(descriptor, trigger)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, events


def _connected(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.setblocking(False)  # noqa: FBT003 -- socket's
        return connection.detach()
