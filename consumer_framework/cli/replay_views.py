# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows the ends of replayed messages as text for people and as values for JSON."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import readable
from consumer_framework.core.text import about, plural

from . import terminal
from .terminal import Column, faint, safe, safe_lines, title

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.kit.handler_profile import Measured
    from consumer_framework.kit.replay import Ended, Summary

_WIDEST_FATE = 11
# Causes that a summary shows.
_CAUSES = 20


def ended_lines(ended: Ended, *, with_traceback: bool) -> Iterator[str]:
    """Yield the lines about one message: its end, and the failed attempts before it."""
    delivery = ended.recorded.delivery
    place = f"{ended.recorded.file}:{ended.recorded.line}"
    colour = terminal.good if ended.is_good else terminal.bad
    reason = f": {safe(ended.reason)}" if ended.reason else ""
    topic = safe(readable(delivery.routing_key))
    fate = colour(f"{ended.fate:<{_WIDEST_FATE}}")
    yield f"{fate}  {faint(safe(place))}  {title(topic)}{reason}"
    yield from _attempt_lines(ended.attempts)
    if with_traceback and ended.attempts:
        yield safe_lines(ended.attempts[-1].traceback.rstrip("\n"), "    ")


def _attempt_lines(attempts: Sequence[Attempt]) -> Iterator[str]:
    numbered = enumerate(attempts, 1)
    for (error, message, fingerprint), equal in groupby(numbered, key=lambda each: _cause(each[1])):
        numbers = [number for number, _ in equal]
        first, last = numbers[0], numbers[-1]
        which = f"attempt {first}" if first == last else f"attempts {first} to {last}"
        where = fingerprint.removeprefix(error)
        text = f"{error.rpartition('.')[2]}: {message}" if message else error
        yield f"    {faint(which)}  {safe(text)}{faint(safe(where))}"


def _cause(attempt: Attempt) -> tuple[str, str, str]:
    return attempt.error, attempt.message, attempt.fingerprint


def ended_document(ended: Ended) -> dict[str, Any]:
    """Return the end of one message as JSON has it."""
    delivery = ended.recorded.delivery
    return {
        "file": ended.recorded.file,
        "line": ended.recorded.line,
        "id": delivery.message_id,
        "topic": readable(delivery.routing_key),
        "ended": ended.fate,
        "good": ended.is_good,
        "reason": ended.reason,
        "runs": ended.runs,
        "virtual_seconds": round(ended.seconds, 3),
        "failures": [asdict(attempt) for attempt in ended.attempts],
    }


def summary_lines(summary: Summary, bad_lines: int) -> Iterator[str]:
    """Yield the lines at the end."""
    fates = ", ".join(f"{count:,} {fate}" for fate, count in summary.fates.most_common())
    colour = terminal.good if summary.is_good else terminal.bad
    yield f"\n{plural(summary.messages, 'message')}{': ' if fates else ''}{colour(fates)}"
    if summary.cut_short:
        yield terminal.bad(f"not run to the end: {safe(summary.cut_short)}")
    if bad_lines:
        yield terminal.bad(f"left out: {plural(bad_lines, 'line')} with no message")
    if summary.published:
        count = plural(summary.published, "message")
        yield f"{count} published by the consumer: counted, and not sent"
    speed = f"in {summary.seconds:.1f} s ({summary.rate:,.0f}/s)"
    yield f"{speed}; {about(summary.virtual_seconds)} of virtual time passed"
    if summary.causes:
        yield ""
        columns = (Column("COUNT", right=True), Column("CAUSE", gives_way=True))
        causes = summary.causes.most_common(_CAUSES)
        cells = [[f"{count:,}", cause] for cause, count in causes]
        head, *lines = terminal.table(columns, cells, terminal.terminal_width())
        yield title(head)
        yield from lines
        if len(summary.causes) > _CAUSES:
            yield faint(f"and {len(summary.causes) - _CAUSES:,} more")


def summary_document(summary: Summary, bad_lines: int) -> dict[str, Any]:
    """Return the result of a replay as JSON has it."""
    return {
        "done": True,
        "good": summary.is_good and not bad_lines,
        "messages": summary.messages,
        "ended": dict(summary.fates),
        "causes": dict(summary.causes),
        "cut_short": summary.cut_short,
        "bad_lines": bad_lines,
        "published": summary.published,
        "seconds": round(summary.seconds, 3),
        "rate": round(summary.rate, 1),
        "virtual_seconds": round(summary.virtual_seconds, 3),
    }


def profile_lines(functions: Sequence[Measured]) -> Iterator[str]:
    """Yield a table of functions, the slowest first."""
    yield ""
    if not functions:
        yield "no profile: the handler was not called"
        return
    columns = (
        Column("CALLS", right=True),
        Column("OWN", right=True),
        Column("TOTAL", right=True),
        Column("FUNCTION (seconds in itself, and with all that it called)", gives_way=True),
    )
    cells = [
        [f"{each.calls:,}", f"{each.own:.3f}", f"{each.total:.3f}", each.name] for each in functions
    ]
    head, *lines = terminal.table(columns, cells, terminal.terminal_width())
    yield title(head)
    yield from lines


def progress(summary: Summary, total: int | None, seconds: float) -> str:
    """Return the line of progress after *seconds*."""
    count, rate = summary.messages, summary.messages / max(seconds, 0.001)
    bad = sum(n for fate, n in summary.fates.items() if fate not in _GOOD)
    of = f" of {total:,}" if total is not None else ""
    failed = f", {bad:,} failed" if bad else ""
    left = about((total - count) / rate) if total is not None and rate else ""
    return f"{count:,}{of} messages{failed}, {rate:,.0f}/s{f', {left} left' if left else ''}"


_GOOD = ("succeeded", "skipped", "dropped")
