# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of a unit file, as it is shipped and as it is installed.

What is installed begins with a mark: a line with a checksum of all that follows. So a file can be
told from one that somebody edited, and from one that somebody else put there.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum

# The command in the shipped text; an RPM installs it there.
SHIPPED_COMMAND = "/usr/bin/fm-consumer"

_MARK = "# Written by 'fm-consumer units install' (checksum {}); 'systemctl edit' changes it.\n"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{16})"))
# Whole words: not the beginning of a longer path.
_COMMAND = re.compile(rf"(?<![\w./-]){re.escape(SHIPPED_COMMAND)}(?![\w./-])")


class Found(StrEnum):
    """What is in the place of a file."""

    NOTHING = "nothing"
    """No file."""
    SAME = "same"
    """The very text."""
    OLDER = "older"
    """Another text that was installed, or copied, and not touched since."""
    EDITED = "edited"
    """One that was installed, and edited."""
    FOREIGN = "foreign"
    """Somebody else's."""


def with_command(shipped: str, command: str) -> str:
    """Return a shipped text with the path of the ``fm-consumer`` that it shall run."""
    return _COMMAND.sub(lambda _: command, shipped)


def marked(text: str) -> str:
    """Return *text* as it is installed."""
    return _MARK.format(_checksum(text)) + text


def unmarked(installed: str) -> str:
    """Return what is installed without its mark; as it is where it has none."""
    return _MARKED.sub("", installed, count=1) if _MARKED.match(installed) else installed


def found(installed: str | None, text: str, shipped: str) -> Found:
    """Tell what is in the place of a file.

    Args:
        installed: What is there; None for nothing.
        text: What should be there, without its mark.
        shipped: The same as it is shipped, which people copied by hand.
    """
    if installed is None:
        return Found.NOTHING
    if installed == marked(text):
        return Found.SAME
    mark = _MARKED.match(installed)
    if mark:
        is_untouched = mark[1] == _checksum(unmarked(installed))
        return Found.OLDER if is_untouched else Found.EDITED
    return Found.OLDER if installed in (text, shipped) else Found.FOREIGN


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
