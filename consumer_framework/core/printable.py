# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of strangers in one line of a log or a terminal.

Whoever may publish chooses ids, topics and bodies. A newline in them would begin a line of the log
that looks like another program's, and an escape sequence would rewrite the screen (CWE-117).
"""

from __future__ import annotations

import re

# C0 and C1 controls, line and paragraph separators, what turns the direction of text around, and
# half surrogate pairs.
_UNSAFE = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_BUT_LINES = re.compile(f"[{_UNSAFE}]")
_ALL = re.compile(rf"[\t\n{_UNSAFE}]")


def printable(text: str) -> str:
    """Return *text* as one line: a character that is not to print is an escape, as in Python."""
    return text if text.isprintable() else _ALL.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Return *text* with its lines and tabs, and all else that is not to print escaped."""
    return text if text.isprintable() else _BUT_LINES.sub(_escape, text)


def clipped(text: str, limit: int) -> str:
    """Return *text* with no more than about *limit* characters: its middle is left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]} [... {left_out} characters left out ...] {text[-half:]}"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
