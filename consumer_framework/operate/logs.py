# SPDX-License-Identifier: GPL-2.0-or-later
"""Selects lines of the journal: the matches of journalctl(1) for instances and fields.

Matches of one field are alternatives, matches of different fields hold together, and a ``+``
separates two sets of which one has to hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer_framework.adapters.systemd.systemctl import unit_name
from consumer_framework.core import log_fields, topics
from consumer_framework.core.errors import FrameworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# More matches than this make journalctl slow.
_MOST_VALUES = 1000
_LINE = "no line of the journal is about"


class NoLineError(FrameworkError):
    """No line can match.

    Args:
        message: One line with the pattern.
    """

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Filters:
    """The values that a field of a line may have, by the name of the field; none for any."""

    message: Sequence[str] = ()
    topic: Sequence[str] = ()
    disposition: Sequence[str] = ()
    cause: Sequence[str] = ()

    def matches(self) -> list[str]:
        """Return the matches of journalctl(1)."""
        fields = {
            log_fields.MESSAGE_ID: self.message,
            log_fields.TOPIC: self.topic,
            log_fields.DISPOSITION: self.disposition,
            log_fields.FINGERPRINT: self.cause,
        }
        return [f"{name}={value}" for name, values in fields.items() for value in values]


def is_topic_pattern(topic: str) -> bool:
    """Return True if *topic* has a ``*`` or ``#`` in the place of words."""
    return bool({topics.ONE, topics.MANY} & {*topics.words_of(topic)})


def is_cause_pattern(cause: str) -> bool:
    """Return True if *cause* has a ``*``, which stands for any text."""
    return "*" in cause


def topics_like(given: Sequence[str], known: Callable[[], Sequence[str]]) -> list[str]:
    """Replace each pattern of topics by the topics that it matches.

    Args:
        given: Topics and patterns.
        known: Returns the topics in the journal; called for patterns only.

    Raises:
        NoLineError: A pattern matches none of them, or too many.
    """
    return _replaced(given, known, is_topic_pattern, topics.matches, "topic")


def causes_like(given: Sequence[str], known: Callable[[], Sequence[str]]) -> list[str]:
    """Replace each pattern of causes by the causes that it matches; as :func:`topics_like`."""
    return _replaced(given, known, is_cause_pattern, _fits, "cause")


def _fits(pattern: str, cause: str) -> bool:
    return bool(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), cause))


def _replaced(
    given: Sequence[str],
    known: Callable[[], Sequence[str]],
    is_pattern: Callable[[str], bool],
    fits: Callable[[str, str], bool],
    noun: str,
) -> list[str]:
    there = known() if any(map(is_pattern, given)) else ()
    found: list[str] = []
    for one in given:
        values = [value for value in there if fits(one, value)] if is_pattern(one) else [one]
        if not values:
            raise NoLineError(f"{_LINE} a {noun} like {one!r}")
        if len(values) > _MOST_VALUES:
            raise NoLineError(f"{len(values):,} {noun}s are like {one!r}; give a narrower one")
        found += values
    return list(dict.fromkeys(found))


def matches(instances: Sequence[str], filters: Filters) -> list[str]:
    """Return the matches for lines of *instances* with the fields of *filters*.

    Without filters, lines of systemd about their units match too, and those that have no fields.

    Args:
        instances: Names; none for any, which takes filters.
        filters: The fields.
    """
    names = [f"{log_fields.INSTANCE}={name}" for name in instances]
    if fields := filters.matches():
        return [*names, *fields]
    units = [unit_name(name) for name in instances]
    own = [f"_SYSTEMD_UNIT={unit}" for unit in units]
    # As journalctl(1) matches for --unit: lines of systemd about it, and of other daemons.
    about = [*(f"UNIT={unit}" for unit in units), "_PID=1"]
    dumps = [*(f"COREDUMP_UNIT={unit}" for unit in units), "_UID=0"]
    objects = [*(f"OBJECT_SYSTEMD_UNIT={unit}" for unit in units), "_UID=0"]
    # A run by hand has no unit.
    return [*own, "+", *about, "+", *dumps, "+", *objects, "+", *names]
