# SPDX-License-Identifier: GPL-2.0-or-later
"""What the control group of this process allows: memory and tasks (cgroups(7))."""

from __future__ import annotations

import contextlib
from pathlib import Path

from . import systemctl

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# The controller of version 1, and its files in versions 2 and 1.
_TASKS = ("pids", "pids.max", "pids.max")
_MEMORY = ("memory", "memory.max", "memory.limit_in_bytes")
# Version 1 writes a number near this for no limit.
_NO_LIMIT = 1 << 60


def most_tasks(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Return how many processes and threads there may be (``TasksMax=``), None for no limit."""
    return _lowest(_TASKS, root, own)


def most_memory(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Return how many bytes of memory there may be (``MemoryMax=``), None for no limit."""
    return _lowest(_MEMORY, root, own)


def tasks_of_service(unit: str) -> int | None:
    """Return ``TasksMax=`` of *unit*; None for no limit, and where systemd cannot be asked."""
    return _number(systemctl.properties(unit, "TasksMax").get("TasksMax", ""))


def _lowest(kind: tuple[str, str, str], root: Path, own: Path) -> int | None:
    """Each group above a group limits it too."""
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
