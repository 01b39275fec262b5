# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows messages of the store as text for people and as values for JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters.store.export import line_of, raw_line_of
from consumer_framework.core.delivery import PROPERTIES, codec_of
from consumer_framework.core.text import age, fit, moment, plural, size

from . import terminal
from .terminal import Column, faint, safe, safe_lines, title

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from consumer_framework.adapters.store import Group, Row, Stats
    from consumer_framework.core.attempt import Attempt, RouteState
    from consumer_framework.core.delivery import Delivery

# Bytes of a body that is no JSON; `export` writes all of it.
RAW_SHOWN = 4096
_BYTES_IN_LINE = 16

STATES = {
    "quarantined": "quarantined",
    "deferred": "deferred",
    "replaying": "in a replay",
    "superseded": "superseded by an edited copy",
}

_GROUP_COLUMNS = (
    Column("COUNT", right=True),
    Column("ROW", right=True),
    Column("AGE", right=True),
    Column("ATTEMPTS", right=True),
    Column("TOPIC", gives_way=True, keep_end=True),
    Column("ERROR", gives_way=True),
)
# Columns of a terminal: so much of an ordering key is shown in a list.
_KEY_SHOWN = 24


def error_of(row: Row) -> str:
    """Return the last error of a row in one line."""
    if not row.error:
        return row.reason
    return f"{row.error.rpartition('.')[2]}: {row.message}" if row.message else row.error


def group_lines(groups: Sequence[Group], now: float, width: int | None) -> Iterator[str]:
    """Yield a table of causes, each with its oldest message, and its fingerprint below it."""
    cells = [
        [
            f"{group.count:,}",
            str(group.sample.id),
            age(now - group.first),
            str(group.sample.attempts),
            group.sample.routing_key,
            error_of(group.sample),
        ]
        for group in groups
    ]
    head, *lines = terminal.table(_GROUP_COLUMNS, cells, width)
    yield title(head)
    indent = " " * (max(len("COUNT"), *(len(row[0]) for row in cells)) + 2)
    for group, line in zip(groups, lines, strict=True):
        yield line
        others = other_texts(group)
        yield faint(f"{indent}{safe(group.fingerprint)}{f' {others}' if others else ''}")


def other_texts(group: Group) -> str:
    """Return a note about errors of *group* with another text than its sample; "" for none."""
    return f"and {plural(group.other_texts, 'other text')}" if group.other_texts else ""


def row_lines(rows: Sequence[Row], now: float, width: int | None) -> Iterator[str]:
    """Yield a table of messages; a value that all share, or none has, gets no column."""
    columns = [
        (Column("ROW", right=True), [str(row.id) for row in rows]),
        (Column("AGE", right=True), [age(now - row.created) for row in rows]),
    ]
    if len({row.state for row in rows}) > 1:
        columns.append((Column("STATE"), [row.state for row in rows]))
    if any(row.due is not None for row in rows):
        columns.append((Column("DUE"), [_runs(row, now) for row in rows]))
    if any(row.lane for row in rows):
        columns.append((Column("KEY"), [fit(safe(row.lane), _KEY_SHOWN) for row in rows]))
    columns += [
        (Column("ATTEMPTS", right=True), [str(row.attempts) for row in rows]),
        (Column("TOPIC", gives_way=True, keep_end=True), [row.routing_key for row in rows]),
        (Column("FINGERPRINT", gives_way=True, keep_end=True), [row.fingerprint for row in rows]),
        # The class is in the fingerprint already.
        (Column("ERROR", gives_way=True), [row.message or row.reason for row in rows]),
    ]
    heads, cells = zip(*columns, strict=True)
    head, *lines = terminal.table(heads, list(zip(*cells, strict=True)), width)
    yield title(head)
    yield from lines


def _runs(row: Row, now: float) -> str:
    if row.due is None:
        return ""
    if row.behind is not None:
        return f"after {row.behind}"
    return f"in {age(row.due - now)}" if row.due > now else "now"


def message_lines(
    row: Row, first: Row | None, delivery: Delivery, steps: Mapping[str, Any], now: float
) -> Iterator[str]:
    """Yield all facts about one message.

    Args:
        row: The row of the message.
        first: The row that it stands behind; None for none.
        delivery: The message.
        steps: The steps that are done, with their results.
        now: Seconds since the epoch.
    """
    yield title(f"Row {row.id}: {STATES[row.state]}, {plural(row.attempts, 'failed attempt')}")
    yield from terminal.pairs([*_facts(row, delivery, now), *_turn(row, first, now)])
    if steps:
        yield ""
        yield title("Steps that are done, and that a replay skips")
        yield from terminal.pairs((name, _shown(result)) for name, result in steps.items())
    yield ""
    headers = delivery.properties.headers
    yield title("Headers" if headers else "Headers: none")
    yield from terminal.pairs((str(name), _shown(value)) for name, value in _sorted(headers))
    yield ""
    yield from _body_lines(delivery)
    for number in range(1, len(delivery.history.attempts) + 1):
        yield from _attempt_lines(number, delivery.history.attempts, now)


def _facts(row: Row, delivery: Delivery, now: float) -> Iterator[tuple[str, str]]:
    yield "why", row.reason
    yield "fingerprint", row.fingerprint
    yield "topic", row.routing_key
    yield "id", row.message_id or "(none)"
    yield "queue", row.queue
    yield "exchange", row.exchange
    yield "received", _when(delivery.received_at, now)
    yield "here since", _when(row.created, now)
    if row.crashes:
        yield "crashes", f"the process died {plural(row.crashes, 'time')} while it was handled"
    for state in delivery.history.routes:
        yield f"route {state.route}", _route_text(state)
    if row.parent is not None:
        yield "edited from", f"row {row.parent}"
    if row.ordered_by:
        yield "last order", row.ordered_by
    for name in PROPERTIES:
        value = getattr(delivery.properties, name, None)
        if name not in ("headers", "message_id") and value is not None:
            yield name, _shown(value)


def _route_text(state: RouteState) -> str:
    if state.ending == "later":
        return f"runs again at {moment(state.until)}: {state.reason}"
    return f"{state.ending}: {state.reason}" if state.reason else state.ending


def _turn(row: Row, first: Row | None, now: float) -> Iterator[tuple[str, str]]:
    if row.lane:
        yield "key", row.lane
    if first is not None:
        yield "behind", f"row {first.id} of the same key, {STATES[first.state]}"
    if row.due is not None:
        yield "runs again", _due(row.due, now) if first is None else f"after row {first.id}"


def _when(at: float, now: float) -> str:
    return f"{moment(at)} ({age(now - at)} ago)"


def _sorted(headers: Any) -> list[tuple[Any, Any]]:
    return sorted((headers or {}).items(), key=lambda item: str(item[0]))


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=terminal.as_json)
    except (TypeError, ValueError, RecursionError):
        return repr(type(value))


def _body_lines(delivery: Delivery) -> Iterator[str]:
    length = plural(len(delivery.body), "byte")
    text = pretty(delivery)
    if text is not None:
        yield title(f"Body ({length} of JSON)")
        yield safe_lines(text, "  ")
        return
    yield title(f"Body ({length}, not JSON)")
    shown = delivery.body[:RAW_SHOWN]
    try:
        yield safe_lines(shown.decode(), "  ")
    except UnicodeDecodeError:
        yield from _hex_lines(shown)
    if len(delivery.body) > RAW_SHOWN:
        rest = plural(len(delivery.body) - RAW_SHOWN, "byte")
        yield faint(f"  and {rest} more: 'fm-consumer quarantine export' writes them all")


def pretty(delivery: Delivery) -> str | None:
    """Return the JSON of the body with indents; None if it is no JSON."""
    encoding = getattr(delivery.properties, "content_encoding", None) or "utf-8"
    try:
        value = json.loads(delivery.body.decode(codec_of(encoding)))
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _hex_lines(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), _BYTES_IN_LINE):
        part = data[start : start + _BYTES_IN_LINE]
        readable = "".join(chr(b) if chr(b).isprintable() and b < 127 else "." for b in part)  # noqa: PLR2004 -- ASCII
        yield f"  {start:06x}  {part.hex(' '):<47}  {readable}"


def _attempt_lines(number: int, attempts: Sequence[Attempt], now: float) -> Iterator[str]:
    attempt = attempts[number - 1]
    route = f" in route {attempt.route}" if attempt.route else ""
    head = f"Attempt {number} of {len(attempts)}{route}, {_when(attempt.at, now)}"
    first = [earlier.traceback for earlier in attempts].index(attempt.traceback) + 1
    if attempt.traceback and first < number:
        yield f"{title(head)}: the traceback of attempt {first}"
        return
    yield ""
    yield title(head)
    text = attempt.traceback.rstrip("\n") or f"{attempt.error}: {attempt.message}"
    yield safe_lines(text, "  ")


def message_document(row: Row, delivery: Delivery, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Return one message as JSON has it: its exported form, and all facts about it."""
    properties = {name: getattr(delivery.properties, name, None) for name in PROPERTIES}
    try:
        json.dumps(properties, default=terminal.as_json)
    except (TypeError, ValueError, RecursionError):
        # Names that are no text, or tables within tables without end.
        properties["headers"] = repr(type(properties["headers"]))
    return {
        **asdict(row),
        "received": delivery.received_at,
        "message": _message(delivery),
        # For an editor: JavaScript rounds numbers that Python does not.
        "text": pretty(delivery),
        "properties": {name: value for name, value in properties.items() if value is not None},
        "failures": [asdict(attempt) for attempt in delivery.history.attempts],
        "routes": [state._asdict() for state in delivery.history.routes],
        "steps": dict(steps),
    }


def _message(delivery: Delivery) -> Any:
    """Return the message as JSON has it; its bytes if its body is nested too deeply to print."""
    message = json.loads(line_of(delivery))
    try:
        # Within the document it is nested a little deeper.
        terminal.json_of([[message]])
    except RecursionError:
        return json.loads(raw_line_of(delivery))
    return message


def stats_lines(stats: Stats, groups: Sequence[Group], disk: int, now: float) -> Iterator[str]:
    """Yield the counts and sizes of the store, and the causes."""
    oldest = f", the oldest for {age(now - stats.oldest)}" if stats.oldest is not None else ""
    due = f", the next one due {_due(stats.next_due, now)}" if stats.next_due is not None else ""
    yield from terminal.pairs(
        [
            ("quarantined", f"{stats.quarantined:,}{oldest}"),
            ("deferred", f"{stats.deferred:,}{due}"),
            ("in a replay", f"{stats.replaying:,}"),
            ("originals of edited ones", f"{stats.superseded:,}"),
            *_blocked(stats),
            ("size", f"{size(stats.bytes)} of bodies, {size(disk)} on the disk"),
        ],
        indent="",
    )
    if groups:
        yield ""
        columns = (Column("COUNT", right=True), Column("FINGERPRINT"))
        cells = [[f"{group.count:,}", group.fingerprint] for group in groups]
        head, *lines = terminal.table(columns, cells, None)
        yield title(head)
        yield from lines


def ramp_line(facts: Mapping[str, Any], now: float) -> str:
    """Return a line about the replay in stages that did not come to its end.

    Args:
        facts: See :attr:`.StoredRamp.facts`.
        now: Seconds since the epoch.
    """
    ran, total, since = facts["ran"], plural(facts["rows"], "message"), now - facts["started"]
    return f"a replay of {total} began {age(since)} ago, and {ran:,} of them have run"


def _blocked(stats: Stats) -> Iterator[tuple[str, str]]:
    if stats.blocked_lanes:
        yield "keys", f"{stats.blocked_lanes:,} of which the first message is quarantined"


def _due(when: float, now: float) -> str:
    return f"in {age(when - now)} ({moment(when)})" if when > now else f"since {moment(when)}"
