# SPDX-License-Identifier: GPL-2.0-or-later
"""Text for people: safe characters, lengths of time, moments, counts and columns.

Publishers choose ids, topics and bodies. A newline in them would begin a log line that looks like
another program's, and an escape sequence would rewrite the screen (CWE-117): :func:`printable`.

Configurations have lengths of time as ``"10s"``, ``"1m"``, ``"1h 30m"`` or ``"7d"``
(systemd.time(7)): :func:`seconds` reads them, :func:`duration_text` writes them. :func:`about` and
:func:`age` round them, for sentences and for tables.
"""

from __future__ import annotations

import contextlib
import math
import re
from bisect import bisect_right
from datetime import UTC, datetime
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator

# C0 and C1 controls, line and paragraph separators, characters that change the direction of text,
# and half surrogate pairs.
_UNSAFE = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_BUT_LINES = re.compile(f"[{_UNSAFE}]")
_ALL = re.compile(rf"[\t\n{_UNSAFE}]")


def printable(text: str) -> str:
    """Return *text* as one line, with unprintable characters as escapes of Python."""
    return text if text.isprintable() else _ALL.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Return *text* with its lines and tabs, and all other unprintable characters as escapes."""
    return text if text.isprintable() else _BUT_LINES.sub(_escape, text)


def clipped(text: str, limit: int) -> str:
    """Return *text* without its middle if it has more than about *limit* characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]} [... {left_out} characters left out ...] {text[-half:]}"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
# Ten years, in seconds: no calendar goes much beyond.
LONGEST = 3650 * 86400.0
# systemd's word for no limit, too.
ENDLESS = "infinity"
_PART = r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)"
# From here on, a rate needs no decimals.
_FAST = 10
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


def duration_text(duration: float) -> str:
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


def about(duration: float) -> str:
    """Write *duration*, in seconds, for a sentence: ``41 s``, ``5 min``, ``7 h``, ``3 d``.

    The unit is the largest of which there are two; the number is rounded down.
    """
    whole = max(int(duration), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def age(duration: float) -> str:
    """Write *duration*, in seconds, for a table: ``45s``, ``90m``, ``12d``.

    The unit is the largest of which there are two, or one minute; the number is rounded down.
    """
    whole = max(int(duration), 0)
    for unit, size, least in (("d", 86400, 2), ("h", 3600, 2), ("m", 60, 1)):
        if whole >= least * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def moment(seconds: float) -> str:
    """Write a time of the epoch in the local time zone."""
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"


def plural(count: int, noun: str) -> str:
    """Count things: ``1 message``, ``1,200 messages``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size(count: int) -> str:
    """Write a number of bytes: ``812 B``, ``1.2 MiB``."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:  # noqa: PLR2004 -- as these units are defined
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


ELLIPSIS = "…"


def width(text: str) -> int:
    """Return the columns of a terminal that *text*, which is printable, takes."""
    if text.isascii():
        return len(text)
    # Late: its tables take a tenth of a second, and most text is ASCII.
    from wcwidth import wcswidth  # noqa: PLC0415

    return max(wcswidth(text), 0)


def fit(text: str, columns: int | None, *, keep_end: bool = False) -> str:
    """Cut *text* to so many columns, at its end or, with *keep_end*, at its beginning."""
    if columns is None or width(text) <= columns:
        return text

    def cut(count: int) -> str:
        return f"{ELLIPSIS}{text[len(text) - count :]}" if keep_end else f"{text[:count]}{ELLIPSIS}"

    counts = range(len(text))
    return cut(max(bisect_right(counts, columns, key=lambda count: width(cut(count))) - 1, 0))


def rate_text(rate: float) -> str:
    """Say how many messages there are in a second, or in a minute where those are few."""
    if rate >= _FAST:
        return f"{rate:.0f}/s"
    if rate >= 1:
        return f"{rate:.1f}/s"
    return f"{rate * 60:.0f}/min" if rate else "0/s"
