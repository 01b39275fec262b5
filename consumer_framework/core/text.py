# SPDX-License-Identifier: GPL-2.0-or-later
"""Lengths of time as people write them: ``"10s"``, ``"1m"``, ``"1h 30m"``, ``"7d"``.

Text of strangers in one line of a log or a terminal.

Whoever may publish chooses ids, topics and bodies. A newline in them would begin a line of the log
that looks like another program's, and an escape sequence would rewrite the screen (CWE-117).
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator

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


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
# Ten years, in seconds: no calendar shows what lies much beyond.
LONGEST = 3650 * 86400.0
# systemd's word for no limit, too.
ENDLESS = "infinity"
_PART = r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)"
_WHOLE = re.compile(rf"\s*(?:{_PART}\s*)+")


def seconds(value: object) -> float:
    """Return the length of time *value* in seconds.

    Args:
        value: A number of seconds, or text such as ``"90s"`` and ``"1h 30m"``.

    Raises:
        ValueError: It is neither, or negative.
    """
    length = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            length = float(value)
    elif isinstance(value, str) and _WHOLE.fullmatch(value):
        length = sum(float(n) * _UNITS[unit] for n, unit in re.findall(_PART, value))
    if 0 <= length <= LONGEST:
        return length
    raise ValueError('must be a length of time such as "10s", "5m", "1h 30m" or "7d"')


def text(duration: float) -> str:
    """Write *duration*, in seconds, as :func:`seconds_or_endless` reads it."""
    if math.isinf(duration):
        return ENDLESS
    rest, parts = round(duration, 3), []
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{int(count)}{unit}")
    if rest or not parts:
        parts.append(f"{rest:g}s")
    return " ".join(parts)


def about(duration: float) -> str:
    """Write *duration*, in seconds, for people: ``41 s``, ``5 min``, ``7 h``, ``3 d``.

    In the largest unit of which there are two, rounded down.
    """
    whole = max(int(duration), 0)
    units = (("d", 86400), ("h", 3600), ("min", 60))
    for unit, size in units:
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def seconds_or_endless(value: object) -> float:
    """Return the length of time *value* in seconds; ``"infinity"`` is one here.

    Raises:
        ValueError: As :func:`seconds` does.
    """
    if isinstance(value, str) and value.strip() == ENDLESS:
        return math.inf
    return seconds(value)


Duration: TypeAlias = Annotated[float, BeforeValidator(seconds)]
DurationOrEndless: TypeAlias = Annotated[float, BeforeValidator(seconds_or_endless)]
