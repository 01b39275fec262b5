# SPDX-License-Identifier: GPL-2.0-or-later
"""Where this very ``fm-consumer`` is, and whether the unit could run it."""

from __future__ import annotations

import stat
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import consumer_framework

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HIDDEN = {
    "/home": "ProtectHome=",
    "/root": "ProtectHome=",
    "/run/user": "ProtectHome=",
    "/tmp": "PrivateTmp=",  # noqa: S108 -- nothing is put there
    "/var/tmp": "PrivateTmp=",  # noqa: S108
}
CURE = (
    "so install consumer_framework into a virtual environment elsewhere, made with a Python that "
    "is elsewhere too: /usr/bin/python3 -m venv /opt/fm-consumer"
)


def own_command() -> Path:
    """Return the path of this ``fm-consumer``, for ``ExecStart=``."""
    places = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    candidates = [place / "fm-consumer" for place in places]
    return next((path for path in candidates if path.exists()), Path(sys.argv[0]).absolute())


def needed_by(command: Path) -> list[Path]:
    """Return what a service must be able to read, to run *command*: Python and this package too."""
    package = Path(consumer_framework.__file__).parent
    return [command, Path(sys.executable).resolve(), package]


def hidden(paths: Iterable[Path]) -> Iterator[str]:
    """Say of each path that the unit's sandbox hides what hides it; :data:`CURE` cures it."""
    for path in dict.fromkeys(paths):
        for directory, setting in _HIDDEN.items():
            if path.is_relative_to(directory):
                yield f"{path}: {setting} of the unit hides {directory} from services"


def unreadable(paths: Iterable[Path]) -> Iterator[str]:
    """Say of each path what keeps users other than root from it: services run as such."""
    for path in dict.fromkeys(paths):
        for place in reversed((path, *path.parents)):
            if not _is_open(place):
                yield f"{path}: {place} is not readable by everyone; chmod o+rX {place}"
                break


def _is_open(place: Path) -> bool:
    try:
        mode = place.stat().st_mode
    except OSError:
        return True
    needed = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
    return bool(mode & needed)
