# SPDX-License-Identifier: GPL-2.0-or-later
"""Matches rows of the store with conditions on the message and on its failure.

Only the columns that the conditions are about are read, and a body is parsed only for a condition
on it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import codec_of

from .properties import unpack
from .records import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from consumer_framework.core.conditions import Condition

_SEVERITY = "fedora_messaging_severity"
# A row without an id, a key or an error has no value there.
_ABSENT: tuple[Any, ...] = (None, "", [])


def _column(name: str) -> Callable[[Mapping[str, Any], float], Any]:
    def value_of(row: Mapping[str, Any], _now: float) -> str:
        value: str | bytes = row[name]
        return text(value)

    return value_of


def _headers(row: Mapping[str, Any], _now: float) -> Any:
    try:
        return unpack(row["properties"]).headers or {}
    except Exception:  # noqa: BLE001 -- a damaged row may have anything there
        return {}


def _severity(row: Mapping[str, Any], now: float) -> Any:
    return _headers(row, now).get(_SEVERITY)


def _body(row: Mapping[str, Any], _now: float) -> Any:
    """Return the JSON of the body; None for a body that is none."""
    try:
        encoding = unpack(row["properties"]).content_encoding or "utf-8"
        return json.loads(row["body"].decode(codec_of(encoding)))
    except Exception:  # noqa: BLE001 -- publishers and damage make any bytes
        return None


def _error(row: Mapping[str, Any], _now: float) -> list[str]:
    """Return the forms in which an operator may write the latest error."""
    name, message = row["error"], row["message"]
    short = name.rpartition(".")[2]
    forms = (name, short, message, f"{short}: {message}" if message else "")
    return [form for form in forms if form]


def _age(row: Mapping[str, Any], now: float) -> Any:
    return now - row["created"]


# The first word of a path: the columns that its value needs, and the function that makes it.
_ROOTS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any], float], Any]]] = {
    "topic": (("m.routing_key",), _column("routing_key")),
    "id": (("m.message_id",), _column("message_id")),
    "queue": (("m.queue",), _column("queue")),
    "exchange": (("m.exchange",), _column("exchange")),
    "severity": (("m.properties",), _severity),
    "headers": (("m.properties",), _headers),
    "body": (("m.properties", "m.body"), _body),
    "error": (("coalesce(a.error, '') AS error", "coalesce(a.message, '') AS message"), _error),
    "cause": (("m.fingerprint",), _column("fingerprint")),
    "reason": (("m.reason",), _column("reason")),
    "attempts": (
        ("(SELECT count(*) FROM attempts WHERE row_id = m.id) AS attempts",),
        lambda row, _now: row["attempts"],
    ),
    "age": (("m.created",), _age),
    "key": (("m.lane",), _column("lane")),
}


def columns_for(conditions: Iterable[Condition]) -> str:
    """Return the columns that *conditions* need, for a SELECT of messages m and attempts a."""
    needed = (column for c in conditions for column in _ROOTS[c.path[0]][0])
    return ", ".join(dict.fromkeys(("m.id", *needed)))


def fits(row: Mapping[str, Any], conditions: Sequence[Condition], now: float) -> bool:
    """Tell if a row with the columns of :func:`columns_for` fits all *conditions*.

    Args:
        row: Its columns by name.
        conditions: Their paths begin with words of :data:`.conditions.STORED_ROOTS`.
        now: Seconds since the epoch.
    """
    roots = dict.fromkeys(condition.path[0] for condition in conditions)
    values = ((root, _ROOTS[root][1](row, now)) for root in roots)
    document = {root: value for root, value in values if value not in _ABSENT}
    return all(condition.holds(document) for condition in conditions)
