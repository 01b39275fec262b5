# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows an outbox, its relay and its rows, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from consumer_framework.core.text import about, age, plural

from . import terminal
from .terminal import Column, bad, doubtful, faint, good, safe, safe_lines, title

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from consumer_framework.publishing.claims import Lease
    from consumer_framework.publishing.report import RelayReport
    from consumer_framework.publishing.store import OutboxStats, Row
    from consumer_framework.runtime.control.schema import RelayStatusReport

# Statistics count no further.
_COUNTED = 1_000_000


def row_lines(rows: Sequence[Row], now: float, width: int | None) -> Iterator[str]:
    """Yield a table of rows; a value that all share, or none has, gets no column."""
    columns = [
        (Column("ROW", right=True), [str(row.row) for row in rows]),
        (Column("AGE", right=True), [age(now - row.message.created) for row in rows]),
    ]
    if len({row.state for row in rows}) > 1:
        columns.append((Column("STATE"), [row.state for row in rows]))
    if any(_due(row, now) for row in rows):
        columns.append((Column("NEXT"), [_due(row, now) for row in rows]))
    if any(row.message.ordering_key for row in rows):
        keys = [row.message.ordering_key for row in rows]
        columns.append((Column("KEY", gives_way=True), keys))
    columns += [
        (Column("ATTEMPTS", right=True), [str(row.attempts) for row in rows]),
        (Column("TOPIC", gives_way=True, keep_end=True), [row.message.topic for row in rows]),
    ]
    if any(row.reason for row in rows):
        columns.append((Column("REASON", gives_way=True), [row.reason for row in rows]))
    heads, cells = zip(*columns, strict=True)
    head, *lines = terminal.table(heads, list(zip(*cells, strict=True)), width)
    yield title(head)
    yield from lines


def _due(row: Row, now: float) -> str:
    if row.state != "waiting":
        return ""
    if row.claimed_until is not None and row.claimed_until > now:
        return "being sent"
    return f"in {about(row.due - now)}" if row.due > now else ""


def row_document(row: Row) -> dict[str, Any]:
    """Return a row as JSON, without its body."""
    message = row.message
    return {
        "row": row.row,
        "state": row.state,
        "id": message.id,
        "topic": message.topic,
        "exchange": message.exchange,
        "ordering_key": message.ordering_key or None,
        "created": message.created,
        "attempts": row.attempts,
        "due": row.due or None,
        "reason": row.reason,
        "on_failure": row.on_failure,
        "claimed_until": row.claimed_until,
        "bytes": message.size,
    }


def message_document(row: Row) -> dict[str, Any]:
    """Return a row with its headers and its body as JSON."""
    message = row.message
    headers, body = dict(message.headers), json.loads(message.body)
    return {**row_document(row), "priority": message.priority, "headers": headers, "body": body}


def export_line(row: Row) -> str:
    """Return a row as the line that :func:`fedora_messaging.message.dumps` writes."""
    message = row.message
    document = {
        "id": message.id,
        "topic": message.topic,
        "headers": dict(message.headers),
        "body": json.loads(message.body),
        "priority": message.priority,
        "queue": None,
        "exchange": message.exchange,
        "ordering_key": message.ordering_key,
    }
    return json.dumps(document, sort_keys=True)


def message_lines(row: Row, now: float) -> Iterator[str]:
    """Yield the lines that show one row readably."""
    message = row.message
    state = {"dead": bad("dead: no relay sends it"), "waiting": "waiting"}[row.state]
    yield f"{title(f'row {row.row}')}  {state}"
    created = datetime.fromtimestamp(message.created, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = [
        ("message", message.id),
        ("topic", message.topic),
        ("exchange", message.exchange),
        ("key", message.ordering_key),
        ("published", f"{created}, {about(max(now - message.created, 0.0))} ago"),
        ("attempts", f"{row.attempts} failed"),
        ("next", _due(row, now)),
        ("reason", row.reason),
        ("size", plural(message.size, "byte")),
    ]
    yield from terminal.pairs([(name, value) for name, value in facts if value])
    yield title("headers")
    yield from terminal.pairs(
        [(name, str(value)) for name, value in sorted(message.headers.items())]
    )
    yield title("body")
    yield safe_lines(json.dumps(json.loads(message.body), indent=2, ensure_ascii=False), "  ")


# Status.


@dataclass(frozen=True, slots=True)
class OutboxFacts:
    """An outbox and its relay, as a command found them.

    Attributes:
        name: That of the instance or relay.
        place: The database.
        stats: The numbers of its rows.
        lease: The lease; None if there never was a relay.
        report: The answer of the relay; None without one.
        problem: The reason why the relay could not be asked; ``""`` for none.
    """

    name: str
    place: str
    stats: OutboxStats
    lease: Lease | None
    report: RelayStatusReport | None
    problem: str


def status_document(facts: OutboxFacts) -> dict[str, Any]:
    """Return the status of an outbox as JSON."""
    stats, lease, report = facts.stats, facts.lease, facts.report
    return {
        "outbox": facts.name,
        "database": facts.place,
        "waiting": stats.waiting,
        "retrying": stats.retrying,
        "dead": stats.dead,
        "oldest": stats.oldest,
        "totals": dict(stats.counts),
        "lease_until": None if lease is None else lease.until,
        "relay": None if report is None else {"pid": report.pid, **asdict(report.relay)},
        "remarks": [] if report is None else list(report.remarks),
        "problem": facts.problem,
    }


def status_lines(facts: OutboxFacts, now: float) -> Iterator[str]:
    """Yield the lines about an outbox and its relay; *now* is in seconds since the epoch."""
    stats, report = facts.stats, facts.report
    yield f"{title(facts.name)}  {faint(safe(facts.place))}"
    totals = stats.counts
    sent = f"{totals.get('sent', 0):,}"
    for kind in ("unroutable", "skipped"):
        if totals.get(kind):
            sent += f", {totals[kind]:,} {kind}"
    shown = [
        ("waiting", _waiting(stats, now)),
        ("dead", bad(_number(stats.dead)) if stats.dead else "0"),
        ("sent", f"{sent}, since the outbox was made"),
        ("relay", _relay(facts, now)),
    ]
    for fact, value in shown:
        yield f"  {fact:<7}  {value}"
    if report is not None:
        yield from _trouble_lines(report, now)


def _number(count: int) -> str:
    return f"{count:,}{' or more' if count >= _COUNTED else ''}"


def _waiting(stats: OutboxStats, now: float) -> str:
    text = _number(stats.waiting)
    if stats.retrying:
        text += f", {_number(stats.retrying)} of them tried again later"
    if stats.oldest is not None:
        text += f"; the oldest for {about(max(now - stats.oldest, 0.0))}"
    return text


def _relay(facts: OutboxFacts, now: float) -> str:
    report = facts.report
    if report is not None:
        shade = {"sending": good, "standby": good, "idle": good, "waiting": bad, "failing": bad}
        relay = report.relay
        text = safe("; ".join([relay.action, *report.remarks]))
        sent = f"{relay.counts.get('sent', 0):,} sent in {about(relay.up)}, process {report.pid}"
        return f"{shade.get(relay.state, doubtful)(text)} {faint(f'({sent})')}"
    if facts.lease is not None and facts.lease.until > now:
        why = f": {safe(facts.problem)}" if facts.problem else ""
        return f"one holds the lease, and was not asked{why}"
    return bad("none: nothing is sent")


def _trouble_lines(report: RelayStatusReport, now: float) -> Iterator[str]:
    relay: RelayReport = report.relay
    for paused in relay.paused:
        where = f"exchange {safe(paused.exchange)}, topic {safe(paused.topic)}"
        yield doubtful(f"  paused: {where}: again in {about(max(paused.until - now, 0.0))}")
    if relay.last_error and relay.last_error != relay.trouble:
        yield faint(f"  last failure: {safe(relay.last_error)}")
