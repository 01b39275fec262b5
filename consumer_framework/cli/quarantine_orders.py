# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine drop`` and ``expire``.

A drop is a request to the instance. If it is stopped, this process carries it out on its store. An
instance that runs expires old messages itself; ``expire`` is for stopped ones.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.text import plural
from consumer_framework.settings import instance_name_problem

from . import options, terminal
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, no_more, where, words
from .selection import (
    CONDITIONS,
    EXPECT,
    FINGERPRINT,
    WHERE,
    YES,
    agree,
    choose,
    nothing,
    open_store,
)
from .terminal import Command, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from consumer_framework.adapters.store import Group, Row
    from consumer_framework.core.conditions import Condition
    from consumer_framework.runtime.control.schema import (
        AnswerT,
        Request,
    )

    from .options import Where

# Rows that one request names: its line must not get too long for the control socket.
_PORTION = 1000
_FAILED = 1


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine export sample 41 42 --output lost.jsonl
  fm-consumer quarantine drop sample 41 42
  fm-consumer quarantine drop sample --where body.build.name=kernel --where 'age>7d'
  fm-consumer quarantine drop sample --fingerprint 'KeyError in' --expect 412
"""
    + CONDITIONS
    + epilog("quarantine drop"),
)
@words("INSTANCE [ROW]...")
@CONF
@STATE_DIR
@FINGERPRINT
@WHERE
@click.option("--all", "everything", is_flag=True, help="All that is quarantined.")
@YES
@EXPECT
@JSON
def drop(  # noqa: PLR0913, PLR0917 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    fingerprint: str | None,
    conditions: tuple[Condition, ...],
    expect: int | None,
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Lose messages, for ever. 'export' keeps a copy.

    Asks before it does: where no rows are named, you type the number of messages.
    """
    at = where(words, conf, state_dir)
    with closing(open_store(at)) as store:
        rows = choose(store, at, fingerprint, conditions, everything=everything)
        causes = store.groups() if fingerprint is not None and not yes else []
    check_states(rows, ("quarantined", "deferred"))
    numbers = [row.id for row in rows]
    for cause in (each for each in causes if rows and each.fingerprint == rows[0].fingerprint):
        click.echo(_described(cause), err=True)
    if not at.rest or expect is not None:
        agree(len(numbers), "drop", at, yes=yes, expect=expect)
    elif not yes:
        what = f"Lose {plural(len(numbers), 'message')} of {at.instance} for ever?"
        click.confirm(what, abort=True, err=True)
    dropped = _dropped(at, numbers)
    kept = sorted(set(numbers) - set(dropped))
    if as_json:
        terminal.print_json({"dropped": dropped, "kept": kept})
    elif not numbers:
        click.echo(nothing(conditions))
    else:
        click.echo(f"{plural(len(dropped), 'message')} dropped")
    if kept:
        which = ", ".join(map(str, kept))
        click.echo(f"fm-consumer: not dropped, gone or in a replay meanwhile: {which}", err=True)
        raise click.exceptions.Exit(_FAILED)


def _dropped(at: Where, numbers: Sequence[int]) -> list[int]:
    from consumer_framework.runtime.control.schema import Drop  # noqa: PLC0415

    answers = ask(at, [Drop(portion) for portion in portions(numbers)]) if numbers else []
    return [number for answer in answers for number in answer.dropped]


def _described(cause: Group) -> str:
    # A fingerprint may stand for errors with several texts.
    from .quarantine_views import error_of, other_texts  # noqa: PLC0415

    texts = " ".join(filter(None, [error_of(cause.sample), other_texts(cause)]))
    return f"{terminal.safe(cause.fingerprint)}: {terminal.safe(texts)}"


def check_states(rows: Sequence[Row], allowed: tuple[str, ...]) -> None:
    """Refuse rows in another state than the *allowed* ones.

    Raises:
        Refusal: There is one.
    """
    from .quarantine_views import STATES  # noqa: PLC0415

    for row in rows:
        if row.state not in allowed:
            raise Refusal(f"row {row.id} is {STATES[row.state]}, not {' or '.join(allowed)}")


def portions(numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield *numbers* in parts, one for each request."""
    for start in range(0, len(numbers), _PORTION):
        yield tuple(numbers[start : start + _PORTION])


def ask(at: Where, requests: Sequence[Request[AnswerT]]) -> list[AnswerT]:
    """Have requests carried out that need no handler; return all answers."""
    from consumer_framework.operate import offline  # noqa: PLC0415
    from consumer_framework.runtime.control import client  # noqa: PLC0415

    with client.reached(at.directory, at.instance, terminal.note) as running:
        if running is not None:
            return [answer for request in requests for answer in running.ask(request)]
    return [
        answer
        for request in requests
        for answer in offline.carry_out(at.directory, at.instance, request)
    ]


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine expire            # all instances of this host
  fm-consumer quarantine expire sample
"""
    + epilog("quarantine expire"),
)
@words("[INSTANCE]...")
@CONF
@STATE_DIR
@JSON
def expire(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Export and delete messages that are quarantined for longer than quarantine_max_age.

    Messages go to expired.jsonl beside the store, as lines of JSON. An instance that runs does
    so itself, every hour; this is for those that are stopped, and fm-consumer-retention.timer
    calls it once a day. Without INSTANCE it looks at all that have a file in
    /etc/fedora-messaging.
    """
    if conf or state_dir:
        places = [where(words, conf, state_dir)]
        no_more(places[0])
    else:
        places = [where((name,), None, None) for name in words or _instances()]
    done = [_expire(at) for at in places]
    if as_json:
        terminal.print_json([asdict(one) for one in done])
    else:
        _show_expired(done)
    if any(one.problem for one in done):
        raise click.exceptions.Exit(_FAILED)


def _instances() -> list[str]:
    return [name for name in options.instance_names() if not instance_name_problem(name)]


@dataclass(frozen=True, slots=True)
class _Expired:
    """The result for one instance, as JSON has it."""

    instance: str
    expired: int = 0
    file: str | None = None
    running: bool = False
    problem: str = ""


def _expire(at: Where) -> _Expired:
    from consumer_framework.operate import offline  # noqa: PLC0415

    try:
        result = offline.expire(at.instance, at.file, at.directory, time.time())
    except FrameworkError as error:
        # The other instances have messages too.
        return _Expired(at.instance, problem=str(error))
    file = str(result.file) if result.rows else None
    return _Expired(at.instance, result.rows, file, result.is_running)


def _show_expired(done: list[_Expired]) -> None:
    for one in done:
        if one.problem:
            terminal.complain(FrameworkError(f"{one.instance}: {one.problem}"))
        elif one.expired:
            count = plural(one.expired, "message")
            click.echo(f"{one.instance}: {count} expired to {terminal.safe(one.file or '')}")
        elif one.running:
            click.echo(f"{one.instance}: runs, and looks itself every hour")
    if not any(one.expired or one.problem for one in done):
        click.echo("nothing is too old")
