# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at the files that a configuration names, as a user who may not see all of them."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def is_directory(path: Path) -> bool | None:
    """Tell if there is such a directory; None where this user may not look."""
    mode = _mode(path)
    return None if mode is None else stat.S_ISDIR(mode)


def is_there(path: Path) -> bool | None:
    """Tell if there is such a file; None where this user may not look."""
    mode = _mode(path)
    return None if mode is None else mode != 0


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return None
