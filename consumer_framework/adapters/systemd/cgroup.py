# SPDX-License-Identifier: GPL-2.0-or-later
"""The control group of the service: its limits, and the pressure on its memory.

Limits are those of cgroups(7). systemd lets a service watch for memory pressure as
https://systemd.io/MEMORY_PRESSURE describes it.
"""

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
from pathlib import Path
from typing import TYPE_CHECKING

from . import systemctl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# The controller of version 1, and its files in versions 2 and 1.
_TASKS = ("pids", "pids.max", "pids.max")
_MEMORY = ("memory", "memory.max", "memory.limit_in_bytes")
# Version 1 writes a number near this for no limit.
_NO_LIMIT = 1 << 60

WATCH = "MEMORY_PRESSURE_WATCH"
WRITE = "MEMORY_PRESSURE_WRITE"
OFF = "/dev/null"

# Seconds between two calls: a source of events may report pressure all the time.
PAUSE = 1.0
_CHUNK = 65536


# Limits.


def most_tasks(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Return the most processes and threads at a time (``TasksMax=``); None for no limit."""
    return _lowest(_TASKS, root, own)


def most_memory(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Return the most bytes of memory (``MemoryMax=``); None for no limit."""
    return _lowest(_MEMORY, root, own)


def tasks_of_service(unit: str) -> int | None:
    """Return ``TasksMax=`` of *unit*; None for no limit, or if systemd cannot be asked."""
    return _number(systemctl.properties(unit, "TasksMax").get("TasksMax", ""))


def _lowest(kind: tuple[str, str, str], root: Path, own: Path) -> int | None:
    # Each group above a group limits it too.
    found = [limit for file in _files(kind, root, own) if (limit := _read(file)) is not None]
    return min(found, default=None)


def _files(kind: tuple[str, str, str], root: Path, own: Path) -> list[Path]:
    controller, file, former_file = kind
    files: list[Path] = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files += _upwards(root, path, file)
            elif controller in controllers.split(","):
                files += _upwards(root / controller, path, former_file)
    return files


def _upwards(root: Path, path: str, file: str) -> list[Path]:
    group = root / path.strip("/")
    return [each / file for each in (group, *group.parents) if each.is_relative_to(root)]


def _read(file: Path) -> int | None:
    try:
        return _number(file.read_text())
    except OSError:
        return None


def _number(text: str) -> int | None:
    number = int(text) if text.strip().isdecimal() else _NO_LIMIT
    return number if number < _NO_LIMIT else None


# Memory pressure.


class PressureWatch:
    """Calls a function when there is memory pressure, at most once a second.

    asyncio cannot wait for the exceptional conditions that the kernel's pressure files report
    (``POLLPRI``), so a thread waits for them.

    Args:
        pressed: Called in that thread.
        lost: Called in that thread when the source of events is gone.
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
        """Watch the file, pipe or socket that *environment* names; return False if it names none.

        Raises:
            OSError: It cannot be watched.
            ValueError: The trigger, which is to be written to it, is not base64.
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
        """Stop watching."""
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
    """Give unused memory back to the kernel; takes up to a tenth of a second."""
    gc.collect()
    # glibc's; other C libraries have none.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _opened(path: str, trigger: bytes) -> tuple[int, int]:
    """Return the descriptor of *path*, with *trigger* written to it, and the events to wait for."""
    mode = os.stat(path).st_mode  # noqa: PTH116 -- the others take a path too
    if stat.S_ISSOCK(mode):
        descriptor, events = _connected(path), select.POLLIN
    elif stat.S_ISFIFO(mode):
        # Opened for writing too, it has no end when its other writers close it. This process would
        # read its own trigger.
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
