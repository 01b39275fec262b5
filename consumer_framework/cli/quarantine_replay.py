# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine replay``, also with an edit of one message.

A replay is a request to the instance. If it is stopped, this process carries it out on its store.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import click

from consumer_framework.core.text import plural

from . import terminal
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, no_such_instance, where, words
from .quarantine_orders import ask, check_states, portions
from .selection import CONDITIONS, EXPECT, FINGERPRINT, WHERE, YES, agree, choose, open_store
from .terminal import Command, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.core.conditions import Condition
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.runtime.control.schema import Begun, Replayed, Step

    from .options import Where

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
  fm-consumer quarantine replay sample --where 'error~timeout' --where 'age<2h'
  fm-consumer quarantine replay sample 41 --edit          # mend the message, then run it
  jq '.n = 1' old.json | fm-consumer quarantine replay sample 41 --body -
"""
    + CONDITIONS
    + epilog("quarantine replay"),
)
@words("INSTANCE [ROW]...")
@CONF
@STATE_DIR
@FINGERPRINT
@WHERE
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
@YES
@EXPECT
@JSON
def replay(  # noqa: PLR0913, PLR0917 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    fingerprint: str | None,
    conditions: tuple[Condition, ...],
    expect: int | None,
    first: int | None,
    callback: str,
    callback_file: str,
    body: IO[bytes] | None,
    *,
    everything: bool,
    do_edit: bool,
    yes: bool,
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
    is_chosen = bool(at.rest or conditions) or fingerprint is not None
    everything = everything or (first is not None and not is_chosen)
    with closing(open_store(at)) as store:
        rows = choose(store, at, fingerprint, conditions, everything=everything)[:first]
        check_states(rows, ("quarantined",))
        edits = do_edit or body is not None
        delivery = store.delivery(rows[0].id) if edits and len(rows) == 1 else None
    numbers = [row.id for row in rows]
    if expect is not None or (conditions and first is None):
        agree(len(numbers), "replay", at, yes=yes, expect=expect)
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
                    for portion in portions(numbers):
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
    [answer] = ask(at, [Edit(delivery.row, body)])
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
