# SPDX-License-Identifier: GPL-2.0-or-later
"""Lengths of time as people write them: ``"10s"``, ``"1m"``, ``"1h 30m"``, ``"7d"``."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator

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
