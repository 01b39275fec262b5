# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine``, and its commands that only read: list, show, export and stats."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.text import plural

from . import terminal
from .exit_codes import epilog
from .options import CONF, JSON, OUTPUT, STATE_DIR, no_more, where, words
from .quarantine_orders import drop, expire
from .quarantine_replay import replay
from .quarantine_to_test import to_test
from .selection import (
    CONDITIONS,
    FINGERPRINT,
    WHERE,
    choose,
    choose_one,
    find_fingerprint,
    look_into,
    nothing,
    open_store,
)
from .terminal import Command, Refusal

# The store is imported late: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from consumer_framework.core.conditions import Condition

    from .options import Where
    from .selection import AnyReader

# The options of `list` that select messages by one of their columns.
_FILTERS = ("topic", "fingerprint", "queue", "limit", "after")


@click.group()
def quarantine() -> None:
    """Look at messages that were set aside, and replay or drop them.

    INSTANCE is a name as in `systemctl start fm-consumer@INSTANCE`. Everything works while the
    instance runs and while it is stopped. Members of the group fm-operators need no root for list,
    show and replay while it runs.

    \b
    fm-consumer quarantine list sample               the causes, with counts
    fm-consumer quarantine show sample 41            one message, its tracebacks
    fm-consumer quarantine to-test sample 41         a test that fails as it did
    fm-consumer quarantine replay sample --first 1   mended? try one message
    fm-consumer quarantine replay sample --all       then the rest
    """  # noqa: D301 -- click wants the backspace character


quarantine.add_command(replay)
quarantine.add_command(drop)
quarantine.add_command(expire)
quarantine.add_command(to_test)


@quarantine.command(
    "list",
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine list sample
  fm-consumer quarantine list sample --rows --topic 'org.fedoraproject.*.bodhi.*'
  fm-consumer quarantine list sample --where 'error~timeout' --causes
  fm-consumer quarantine list sample --state deferred
  fm-consumer quarantine list sample --limit 50 --after 41     # the next 50
"""
    + CONDITIONS
    + epilog("quarantine list"),
)
@words("INSTANCE")
@CONF
@STATE_DIR
@click.option("--rows", "--all", "rows", is_flag=True, help="List every message by itself.")
@click.option("--causes", is_flag=True, help="List causes, also with --where.")
@click.option("--topic", metavar="PATTERN", help="Messages of these topics; * is any text.")
@FINGERPRINT
@WHERE
@click.option("--queue", metavar="QUEUE", help="Messages that came from this queue.")
@click.option(
    "--state",
    type=click.Choice(["quarantined", "deferred", "replaying", "superseded", "any"]),
    default="quarantined",
    show_default=True,
    help="Deferred ones run by themselves when they are due; superseded ones are the originals "
    "of edited messages.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="So many messages at most.")
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="ROW",
    help="Messages after this row: the next portion of a list with --limit.",
)
@JSON
def list_(  # noqa: PLR0913 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    rows: bool,
    causes: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """List the quarantined messages by cause.

    Messages that failed for the same cause, the same exception at the same place of the handler,
    are one line, with the number of the oldest one, and below it the cause's fingerprint. With
    --rows, or any filter, each message is a line.
    """
    at = where(words, conf, state_dir)
    no_more(at)
    chosen = [f"--{name}" for name in _FILTERS if filters[name] is not None]
    chosen += ["--state"] * (filters["state"] != "quarantined") + ["--rows"] * rows
    if causes and chosen:
        raise click.UsageError(f"--causes goes with --where alone, not with {chosen[0]}")
    by_row = chosen or (filters["conditions"] and not causes)
    with closing(look_into(at)) as store:
        if by_row:
            _list_rows(store, at, filters, as_json=as_json)
        else:
            _list_groups(store, at, filters["conditions"], as_json=as_json)


def _list_groups(
    store: AnyReader, at: Where, conditions: Sequence[Condition], *, as_json: bool
) -> None:
    from . import quarantine_views  # noqa: PLC0415

    groups = store.groups(conditions, time.time())
    if as_json:
        terminal.print_json([asdict(group) for group in groups])
        return
    if not groups:
        click.echo(nothing(conditions))
        return
    for line in quarantine_views.group_lines(groups, time.time(), terminal.terminal_width()):
        click.echo(line)
    total = plural(sum(group.count for group in groups), "message")
    click.echo(f"\n{total}, {plural(len(groups), 'cause')}; ROW is the oldest of each:")
    click.echo(terminal.faint(f"  {at.command('show', groups[0].sample.id)}"))


def _list_rows(store: AnyReader, at: Where, filters: dict[str, Any], *, as_json: bool) -> None:
    from . import quarantine_views  # noqa: PLC0415

    limit, state, conditions = (filters.pop(name) for name in ("limit", "state", "conditions"))
    if filters["fingerprint"] is not None and state == "quarantined" and store.groups():
        filters["fingerprint"] = find_fingerprint(store, filters["fingerprint"])
    # One more than asked for tells whether there are more.
    most = -1 if limit is None else limit + 1
    rows = store.rows(
        state=None if state == "any" else state,
        limit=most,
        where=conditions,
        now=time.time(),
        **filters,
    )
    shown = rows[:limit]
    if as_json:
        terminal.print_json([asdict(row) for row in shown])
        return
    if not rows:
        filtered = conditions or any(value is not None for value in filters.values())
        place = "here" if state == "any" else quarantine_views.STATES[state]
        click.echo(f"nothing is {place}{' that fits' if filtered else ''}")
        return
    for line in quarantine_views.row_lines(shown, time.time(), terminal.terminal_width()):
        click.echo(line)
    more = f"; there are more, with --after {shown[-1].id}" if len(rows) > len(shown) else ""
    click.echo(f"\n{plural(len(shown), 'message')}{more}:")
    click.echo(terminal.faint(f"  {at.command('show', shown[0].id)}"))


@quarantine.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine show sample 41
  fm-consumer quarantine show sample --where body.build.name=kernel
  fm-consumer quarantine show sample 41 --json | jq .message.body
"""
    + CONDITIONS
    + epilog("quarantine show"),
)
@words("INSTANCE [ROW]")
@CONF
@STATE_DIR
@WHERE
@JSON
def show(
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    conditions: tuple[Condition, ...],
    *,
    as_json: bool,
) -> None:
    """Show one message readably, and the traceback of every attempt with its time.

    With --where, it is the oldest quarantined message that fits.
    """
    from . import quarantine_views  # noqa: PLC0415

    at = where(words, conf, state_dir)
    with closing(look_into(at)) as store:
        row = choose_one(store, at, conditions)
        delivery, steps = store.delivery(row.id), store.steps(row.id)
        first = None if row.behind is None else store.row(row.behind)
    if delivery is None:
        raise Refusal(f"row {row.id} is gone now")
    if as_json:
        terminal.print_json(quarantine_views.message_document(row, delivery, steps))
        return
    for line in quarantine_views.message_lines(row, first, delivery, steps, time.time()):
        click.echo(line)
    if row.state == "quarantined":
        number = row.id if first is None else first.id
        click.echo(f"\nMended? {terminal.faint(at.command('replay', number))}")


@quarantine.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine export sample > quarantined.jsonl
  fm-consumer quarantine export sample 41 42 --output two.jsonl
  fm-consumer quarantine export sample --where 'age>7d' --output old.jsonl
  fedora-messaging publish quarantined.jsonl    # every subscriber gets them again
"""
    + CONDITIONS
    + epilog("quarantine export"),
)
@words("INSTANCE [ROW]...")
@CONF
@STATE_DIR
@FINGERPRINT
@WHERE
@OUTPUT
@click.option("--json", is_flag=True, expose_value=False, help="Changes nothing: JSON it is.")
def export(  # noqa: PLR0913, PLR0917 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    fingerprint: str | None,
    conditions: tuple[Condition, ...],
    target: Path | None,
) -> None:
    """Write messages as fedora-messaging's lines of JSON: all that are quarantined, or these rows.

    fedora_messaging.message.loads and `fedora-messaging publish` read them. One that is no valid
    message is written with its bytes in "body_base64" and its AMQP properties; both refuse it.
    Nothing changes in quarantine.
    """
    at = where(words, conf, state_dir)
    with closing(open_store(at)) as store:
        everything = fingerprint is None and not (at.rest or conditions)
        rows = choose(store, at, fingerprint, conditions, everything=everything)
        lines = store.export([row.id for row in rows])
        if target is None:
            for line in lines:
                click.echo(line, nl=False)
            return
        count = write_new(target, lines)
    click.echo(f"{plural(count, 'message')} written to {target}", err=True)


def write_new(target: Path, lines: Iterable[str]) -> int:
    """Write *lines* to the new file *target*; return their number.

    Raises:
        Refusal: It is there already, or cannot be written.
    """
    count = 0
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for count, line in enumerate(lines, 1):  # noqa: B007 -- how many there were
                file.write(line)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise Refusal(f"{target} is there already; name a new file") from None
    except OSError as error:
        raise Refusal(f"{target} cannot be written: {(error.strerror or '').lower()}") from error
    return count


@quarantine.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine stats sample
  fm-consumer quarantine stats sample --json | jq .quarantined
"""
    + epilog("quarantine stats"),
)
@words("INSTANCE")
@CONF
@STATE_DIR
@JSON
def stats(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Show the number, size, age and causes of messages, and the next one due."""
    from . import quarantine_views  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    with closing(open_store(at)) as store:
        found, groups, ramp = store.stats(), store.groups(), store.ramp()
    disk = sum(file.stat().st_size for file in at.directory.glob("store.sqlite3*"))
    if as_json:
        causes = {group.fingerprint: group.count for group in groups}
        replay = None if ramp is None else ramp.facts
        document = {**asdict(found), "disk_bytes": disk, "fingerprints": causes, "replay": replay}
        terminal.print_json(document)
        return
    for line in quarantine_views.stats_lines(found, groups, disk, time.time()):
        click.echo(line)
    if ramp is not None:
        click.echo(f"\n{quarantine_views.ramp_line(ramp.facts, time.time())}; go on:")
        click.echo(terminal.faint(f"  {at.command('replay', '--resume')}"))
