# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of ``fm-consumer quarantine`` that change it: replay, drop and expire.

Replay and drop are requests to the instance. If it is stopped, this process carries them out on its
store. An instance that runs expires old messages itself; ``expire`` is for stopped ones.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import click

from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.text import plural
from consumer_framework.settings import instance_name_problem

from . import options, terminal
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, no_more, no_such_instance, where, words
from .selection import FINGERPRINT, choose, open_store
from .terminal import Command, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from consumer_framework.adapters.store import Group, Row
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.runtime.control.schema import (
        AnswerT,
        Begun,
        Replayed,
        Request,
        Step,
    )

    from .options import Where

# Rows that one request names: its line must not get too long for the control socket.
_PORTION = 1000
# From so many rows on, a terminal shows a bar and not a line for each.
_MANY = 20
_UNCHANGED = "the message is what it was; nothing was replayed"
_FAILED = 1
_INTERRUPTED = 130

_RESULTS = {
    "succeeded": "succeeded",
    "failed": "failed again",
    "skipped": "skipped",
    "defer": "deferred by the handler",
    "reject": "dropped by the handler",
    "halt": "halted the instance",
}
_DONE = ("succeeded", "reject")


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine replay sample --first 1          # a canary
  fm-consumer quarantine replay sample --fingerprint 'KeyError in'
  fm-consumer quarantine replay sample 41 --edit          # mend the message, then run it
  jq '.n = 1' old.json | fm-consumer quarantine replay sample 41 --body -
"""
    + epilog("quarantine replay"),
)
@words("INSTANCE [ROW]...")
@CONF
@STATE_DIR
@FINGERPRINT
@click.option("--all", "everything", is_flag=True, help="All that is quarantined.")
@click.option(
    "--first",
    type=click.IntRange(1),
    metavar="N",
    help="Only the oldest N of them: see whether one succeeds before you try them all.",
)
@click.option(
    "--edit", "do_edit", is_flag=True, help="Edit the body of one ROW first, with $EDITOR."
)
@click.option(
    "--body",
    type=click.File("rb"),
    metavar="FILE",
    help="Edit one ROW so: FILE has its new body, an object of JSON; '-' is standard input.",
)
@click.option("--callback", default="", metavar="MODULE:OBJECT", help="As for 'run'.")
@click.option("--callback-file", default="", metavar="FILE.py:OBJECT", help="As for 'run'.")
@JSON
def replay(  # noqa: PLR0913, PLR0917 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    fingerprint: str | None,
    first: int | None,
    callback: str,
    callback_file: str,
    body: IO[bytes] | None,
    *,
    everything: bool,
    do_edit: bool,
    as_json: bool,
) -> None:
    """Run messages again, oldest first, each once. A message that fails again stays in quarantine.

    A running instance runs them between its other messages. Where it is stopped, this command
    builds the handler from the configuration and runs it itself, as the user who calls it. No
    other subscriber sees them: nothing is published. Ctrl-C ends it: the message that runs is run
    to its end, and the others stay. One replay runs at a time.

    --edit and --body keep the original until the edited copy has succeeded.
    """
    at = where(words, conf, state_dir)
    everything = everything or (first is not None and not at.rest and fingerprint is None)
    with closing(open_store(at)) as store:
        rows = choose(store, at, fingerprint, everything=everything)[:first]
        _check_states(rows, ("quarantined",))
        edits = do_edit or body is not None
        delivery = store.delivery(rows[0].id) if edits and len(rows) == 1 else None
    numbers = [row.id for row in rows]
    if edits:
        if delivery is None:
            raise Refusal(f"{'--edit' if do_edit else '--body'} takes one ROW")
        numbers = [_edited(at, delivery, body, as_json=as_json)]
    if not numbers:
        _ReplayProgress(0, as_json).sum_up(at)
        return
    _replay(at, numbers, (callback, callback_file), as_json=as_json)


def _replay(
    at: Where, numbers: Sequence[int], callbacks: tuple[str, str], *, as_json: bool
) -> None:
    from consumer_framework.runtime.control import client  # noqa: PLC0415
    from consumer_framework.runtime.control.schema import Replay  # noqa: PLC0415

    with _ReplayProgress(len(numbers), as_json) as progress:
        try:
            with client.reached(at.directory, at.instance, terminal.note) as running:
                if running is None:
                    _replay_here(at, numbers, callbacks, progress)
                else:
                    running.wait_long()
                    for portion in _portions(numbers):
                        for answer in running.ask(Replay(portion)):
                            progress.tell(answer)
        except KeyboardInterrupt:
            click.echo(f"\nfm-consumer: interrupted: {progress.left}", err=True)
            raise click.exceptions.Exit(_INTERRUPTED) from None
    progress.sum_up(at)
    if not progress.is_good:
        raise click.exceptions.Exit(_FAILED)


def _replay_here(
    at: Where, numbers: Sequence[int], callbacks: tuple[str, str], progress: _ReplayProgress
) -> None:
    """Run the handler in this process."""
    from consumer_framework.adapters import log  # noqa: PLC0415
    from consumer_framework.adapters.systemd.notify import is_journal  # noqa: PLC0415
    from consumer_framework.runtime import reactor  # noqa: PLC0415

    if not at.file.exists():
        raise no_such_instance(at.instance, at.file)
    # An author's module may import it.
    reactor.install()
    from consumer_framework.operate import offline  # noqa: PLC0415
    from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415

    log.set_up(None, is_journal, level=logging.WARNING)
    _warn_of_root(at)
    callback, callback_file = callbacks
    options = RunOptions(at.file, callback, callback_file, instance=at.instance)
    offline.replay(options, at.directory, numbers, progress.tell, progress.interrupted)


def _warn_of_root(at: Where) -> None:
    # The service may not be able to write files afterwards that a handler wrote as root.
    if os.geteuid() == 0 and at.directory.stat().st_uid != 0:
        what = f"{at.instance} is stopped: its handler runs here, as root"
        cure = f"to have it run as the service does: systemctl start fm-consumer@{at.instance}"
        click.echo(f"fm-consumer: {what}; {cure}", err=True)


@dataclass(slots=True)
class _ReplayProgress:
    """Shows the result of each replayed row, and counts."""

    total: int
    as_json: bool
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    running: int | None = None
    _bar: Any = None

    def __enter__(self) -> Self:
        terminal = sys.stdout.isatty()
        if terminal and self.total > _MANY and not self.as_json:
            self._bar = click.progressbar(length=self.total, show_pos=True).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def tell(self, answer: Step | Begun | Replayed) -> None:
        """Show an answer of a replay."""
        from consumer_framework.runtime.control.schema import Begun, Step  # noqa: PLC0415

        match answer:
            case Step(step):
                click.echo(f"\nfm-consumer: {step}", err=True)
            case Begun(row):
                self.running = row
            case _:
                self.running = None
                self._count(answer)

    def interrupted(self) -> None:
        """Say that the process exits now, and how many rows are left."""
        self.running = None
        click.echo(f"\nfm-consumer: interrupted: {self.left}", err=True)

    def _count(self, answer: Replayed) -> None:
        result, reason = answer.result, answer.reason
        self.counts[result] += 1
        if reason:
            self.reasons[f"{_RESULTS.get(result, result)}: {reason}"] += 1
        if self.as_json:
            terminal.print_json(asdict(answer), indent=None)
        elif self._bar is not None:
            self._bar.update(1)
        else:
            click.echo(self._line(answer.row, result, reason))

    def _line(self, row: int, result: str, reason: str) -> str:
        colour = terminal.good if result in _DONE else terminal.bad
        because = f": {terminal.safe(reason)}" if reason else ""
        return f"row {row} {colour(_RESULTS.get(result, result))}{because}"

    @property
    def is_good(self) -> bool:
        """Tell whether every row is done with."""
        return sum(self.counts[result] for result in _DONE) == self.total

    @property
    def left(self) -> str:
        """Describe the rows without a result, for an operator who ends the command."""
        left = self.total - self.counts.total()
        if self.running is None:
            return f"{plural(left, 'message')} left in quarantine"
        goes_on = f"row {self.running} goes on in the instance, whose log says how it ends"
        return f"{goes_on}; {plural(left - 1, 'other message')} left in quarantine"

    def sum_up(self, at: Where) -> None:
        """Show how many rows succeeded, and a command to look at the others."""
        done = sum(self.counts[result] for result in _DONE)
        if self.as_json:
            total = {"done": True, "rows": self.total, "results": dict(self.counts)}
            terminal.print_json(total, indent=None)
            return
        if self._bar is not None:
            for reason, count in self.reasons.most_common(5):
                click.echo(f"{count:,} {terminal.safe(reason)}")
        colour = terminal.good if self.is_good else terminal.bad
        if not self.total:
            click.echo("nothing is quarantined")
        elif self.total != 1:
            click.echo(colour(f"{done:,} of {self.total:,} succeeded"))
        if not self.is_good:
            click.echo(f"See: {terminal.faint(at.command('list'))}")


def _edited(at: Where, delivery: Delivery, given: IO[bytes] | None, *, as_json: bool) -> int:
    """Take the *given* body, or let the operator edit it; return the row of the edited copy."""
    from consumer_framework.runtime.control.schema import Edit  # noqa: PLC0415

    body = _edit(delivery) if given is None else _given(delivery, given)
    [answer] = _ask(at, [Edit(delivery.row, body)])
    if answer.row is None:
        raise Refusal(f"row {delivery.row} is no longer quarantined; nothing was changed")
    if not as_json:
        click.echo(f"row {delivery.row}, as edited, is row {answer.row}")
    return answer.row


def _edit(delivery: Delivery) -> dict[str, Any]:
    """Let the operator edit the body of *delivery*; return the edited body.

    Raises:
        Refusal: Nothing was edited, or the text is no JSON object.
    """
    from .quarantine_views import pretty  # noqa: PLC0415

    _check_encoding(delivery)
    before = pretty(delivery)
    text = before or delivery.body.decode("utf-8", "backslashreplace")
    descriptor, name = tempfile.mkstemp(prefix=f"fm-consumer-row-{delivery.row}-", suffix=".json")
    file = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"{text}\n")
        body = _body_after_editor(file)
    except _TextKeptError:
        raise
    except BaseException:
        file.unlink()
        raise
    file.unlink()
    if before is not None and body == json.loads(before):
        raise Refusal(_UNCHANGED)
    return body


def _given(delivery: Delivery, given: IO[bytes]) -> dict[str, Any]:
    """Read the new body of *delivery*.

    Raises:
        Refusal: It is no JSON object, or the body that the message has.
    """
    from .quarantine_views import pretty  # noqa: PLC0415

    _check_encoding(delivery)
    body = _object(given.read(), "nothing was replayed", Refusal)
    before = pretty(delivery)
    if before is not None and body == json.loads(before):
        raise Refusal(_UNCHANGED)
    return body


def _body_after_editor(file: Path) -> dict[str, Any]:
    before = file.read_bytes()
    click.edit(filename=str(file))
    after = file.read_bytes()
    if after == before:
        raise Refusal("nothing was edited; nothing was replayed")
    return _parsed(after, file)


class _TextKeptError(Refusal):
    """The refused text stays in its file."""


def _parsed(data: bytes, file: Path) -> dict[str, Any]:
    return _object(data, f"nothing was replayed, your text is in {file}", _TextKeptError)


def _object(data: bytes, effect: str, refusal: type[Refusal]) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refusal(f"that is no JSON ({error}); {effect}") from None
    if not isinstance(body, dict):
        raise refusal(f"that is no JSON object; {effect}")
    return body


def _check_encoding(delivery: Delivery) -> None:
    """Refuse a message whose properties would make any body undecodable."""
    encoding = getattr(delivery.properties, "content_encoding", None)
    try:
        "{}".encode(encoding or "utf-8")
    except (LookupError, TypeError, ValueError):
        what = f"its content_encoding {encoding!r} lets nobody read any body"
        cure = "export it, mend that and publish it, or drop it"
        raise Refusal(f"row {delivery.row} cannot be mended by an edit: {what}; {cure}") from None


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine export sample 41 42 --output lost.jsonl
  fm-consumer quarantine drop sample 41 42
  fm-consumer quarantine drop sample --fingerprint 'KeyError in' --yes
"""
    + epilog("quarantine drop"),
)
@words("INSTANCE [ROW]...")
@CONF
@STATE_DIR
@FINGERPRINT
@click.option("--all", "everything", is_flag=True, help="All that is quarantined.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@JSON
def drop(  # noqa: PLR0913 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    fingerprint: str | None,
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Lose messages, for ever. Asks before it does; 'export' keeps a copy."""
    at = where(words, conf, state_dir)
    with closing(open_store(at)) as store:
        rows = choose(store, at, fingerprint, everything=everything)
        causes = store.groups() if fingerprint is not None and not yes else []
    _check_states(rows, ("quarantined", "deferred"))
    numbers = [row.id for row in rows]
    if numbers and not yes:
        for cause in (each for each in causes if each.fingerprint == rows[0].fingerprint):
            click.echo(_described(cause), err=True)
        what = f"Lose {plural(len(numbers), 'message')} of {at.instance} for ever?"
        click.confirm(what, abort=True, err=True)
    dropped = _dropped(at, numbers)
    kept = sorted(set(numbers) - set(dropped))
    if as_json:
        terminal.print_json({"dropped": dropped, "kept": kept})
    elif not numbers:
        click.echo("nothing is quarantined")
    else:
        click.echo(f"{plural(len(dropped), 'message')} dropped")
    if kept:
        which = ", ".join(map(str, kept))
        click.echo(f"fm-consumer: not dropped, gone or in a replay meanwhile: {which}", err=True)
        raise click.exceptions.Exit(_FAILED)


def _dropped(at: Where, numbers: Sequence[int]) -> list[int]:
    from consumer_framework.runtime.control.schema import Drop  # noqa: PLC0415

    answers = _ask(at, [Drop(portion) for portion in _portions(numbers)]) if numbers else []
    return [number for answer in answers for number in answer.dropped]


def _described(cause: Group) -> str:
    # A fingerprint may stand for errors with several texts.
    from .quarantine_views import error_of, other_texts  # noqa: PLC0415

    texts = " ".join(filter(None, [error_of(cause.sample), other_texts(cause)]))
    return f"{terminal.safe(cause.fingerprint)}: {terminal.safe(texts)}"


def _check_states(rows: Sequence[Row], allowed: tuple[str, ...]) -> None:
    from .quarantine_views import STATES  # noqa: PLC0415

    for row in rows:
        if row.state not in allowed:
            raise Refusal(f"row {row.id} is {STATES[row.state]}, not {' or '.join(allowed)}")


def _portions(numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(numbers), _PORTION):
        yield tuple(numbers[start : start + _PORTION])


def _ask(at: Where, requests: Sequence[Request[AnswerT]]) -> list[AnswerT]:
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
