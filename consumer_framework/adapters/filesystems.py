# SPDX-License-Identifier: GPL-2.0-or-later
"""What kind of filesystem a directory is on (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


def nearest(path: Path) -> Path:
    """Return *path*, or the directory above it that exists."""
    found = path.absolute()
    # Path.exists raises where this user may not look; os.path.exists does not.
    while not os.path.exists(found) and found != found.parent:  # noqa: PTH110
        found = found.parent
    return found


def filesystem_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """Return the type of the filesystem that *path* is, or would be, on.

    Returns:
        ``ext4``, ``tmpfs`` and so on; "" where that cannot be told.
    """
    try:
        real = nearest(path).resolve()
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    points = [(point, kind) for point, kind in map(_mount, lines) if real.is_relative_to(point)]
    # What was mounted last hides what was mounted at the same place before.
    return max(reversed(points), key=lambda mount: len(mount[0].parts), default=(real, ""))[1]


def _mount(line: str) -> tuple[Path, str]:
    before, _, after = line.partition(" - ")
    return Path(_unescaped(before.split()[4])), after.split()[0]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
