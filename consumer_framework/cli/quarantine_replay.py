# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer quarantine replay``, also with an edit of one message.

A replay is a request to the instance. If it is stopped, this process carries it out on its store.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from . import terminal
from .asking import running
from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, may_exist, no_such_instance, where, words
from .quarantine_orders import ask, check_states, portions
from .quarantine_progress import ReplayProgress
from .selection import (
    CONDITIONS,
    EXPECT,
    FINGERPRINT,
    WHERE,
    YES,
    agree,
    choose,
    look_into,
    open_store,
)
from .terminal import Command, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from consumer_framework.core.conditions import Condition
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.runtime.control.client import Client
    from consumer_framework.runtime.control.schema import Replay

    from .options import Where
    from .selection import AnyReader

_AGAIN = "what was not told of is quarantined again when it starts"
_UNCHANGED = "the message is what it was; nothing was replayed"
_FAILED = 1
_INTERRUPTED = 130

# Rows of a replay in stages, which one request names: it must not get too long.
_MOST_IN_RAMP = 100_000


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer quarantine replay sample --first 1          # a canary
  fm-consumer quarantine replay sample --fingerprint 'KeyError in'
  fm-consumer quarantine replay sample --where 'error~timeout' --where 'age<2h'
  fm-consumer quarantine replay sample --all --ramp 1,5,20,100 --rate 10/s --stop-at 5%
  fm-consumer quarantine replay sample --resume           # goes on with it
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
    "--ramp",
    metavar="PERCENT,...",
    help="Run the messages in stages: up to these percentages of them, such as 1,5,20,100.",
)
@click.option("--rate", metavar="RATE", help="So many messages at most, such as 10/s or 90/m.")
@click.option(
    "--stop-at",
    metavar="PERCENT",
    help="Stop as soon as so many of the messages of a stage have failed, such as 5%; with 0% at "
    "the first one. Default: 5% with --ramp, otherwise no limit.",
)
@click.option("--resume", is_flag=True, help="Go on with the replay that was interrupted.")
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
    resume: bool,
    do_edit: bool,
    yes: bool,
    as_json: bool,
    **limits: str | None,
) -> None:
    """Run messages again, oldest first, each once. A message that fails again stays in quarantine.

    A running instance runs them between its other messages. Where it is stopped, this command
    builds the handler from the configuration and runs it itself, as the user who calls it. No
    other subscriber sees them: nothing is published. Ctrl-C ends it: the message that runs is run
    to its end, and the others stay. One replay runs at a time.

    With --ramp it runs 1% of the messages, then goes on up to 5%, and so on, and stops if too many
    of one stage fail. A replay with --ramp, --rate or --stop-at that stopped, or was interrupted by
    anything, goes on with --resume.

    --edit and --body keep the original until the edited copy has succeeded.
    """
    at = where(words, conf, state_dir)
    plan = _plan_of(limits)
    runner = _Runner(at, callback, callback_file)
    is_chosen = bool(at.rest or conditions) or fingerprint is not None
    if resume:
        if is_chosen or everything or plan or do_edit or {first, expect, body} != {None}:
            raise click.UsageError("--resume goes on with a replay as it was begun: give no more")
        _resume(runner, as_json=as_json)
        return
    everything = everything or (first is not None and not is_chosen)
    edits = do_edit or body is not None
    # An edit is not for operators: they are told before they begin.
    with closing(open_store(at) if edits else look_into(at)) as store:
        runner = runner.for_reader(store)
        rows = choose(store, at, fingerprint, conditions, everything=everything)[:first]
        delivery = store.delivery(rows[0].id) if edits and len(rows) == 1 else None
    check_states(rows, ("quarantined",))
    if expect is not None or (conditions and first is None):
        agree(len(rows), "replay", at, yes=yes, expect=expect)
    numbers = tuple(row.id for row in rows)
    if edits:
        if delivery is None:
            raise Refusal(f"{'--edit' if do_edit else '--body'} takes one ROW")
        numbers = (_edited(at, delivery, body, as_json=as_json),)
    _replay_rows(runner, numbers, plan, ReplayProgress(len(numbers), as_json))


@dataclass(frozen=True, slots=True)
class _Runner:
    """The process that runs the messages.

    Attributes:
        at: The instance.
        callback: The option of this name.
        callback_file: Likewise.
        must_run: This user may not read the store, so the instance itself has to run them.
    """

    at: Where
    callback: str
    callback_file: str
    must_run: bool = False

    def for_reader(self, store: AnyReader) -> _Runner:
        """Return the same for an operator who has this reader of its store."""
        from consumer_framework.operate.api_store import ApiStore  # noqa: PLC0415

        return replace(self, must_run=isinstance(store, ApiStore))

    def reached(self) -> AbstractContextManager[Client | None]:
        """Connect to the instance; None if it is stopped, and this process may run them."""
        from consumer_framework.runtime.control import client  # noqa: PLC0415

        if self.must_run:
            return running(self.at)
        return client.reached(self.at.directory, self.at.instance, terminal.note)


def _replay_rows(
    runner: _Runner, numbers: tuple[int, ...], plan: dict[str, Any], progress: ReplayProgress
) -> None:
    from consumer_framework.runtime.control.schema import Replay  # noqa: PLC0415

    if not numbers:
        progress.sum_up(runner.at)
        return
    if plan and len(numbers) > _MOST_IN_RAMP:
        cure = f"add --first {_MOST_IN_RAMP}"
        raise Refusal(f"a replay in stages takes {_MOST_IN_RAMP:,} messages: {cure}")
    _replay(runner, Replay(rows=numbers, **plan), progress)


def _plan_of(limits: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the fields of the request for a replay in stages; none for a plain one.

    Args:
        limits: The texts of --ramp, --rate and --stop-at; None where one is not given.

    Raises:
        click.BadParameter: A text is none of its kind.
    """
    from consumer_framework.core.limits import per_second  # noqa: PLC0415
    from consumer_framework.core.ramp import DEFAULT_LIMIT, percentage_of, stages_of  # noqa: PLC0415

    readers: dict[str, Callable[[str], Any]] = {
        "ramp": stages_of,
        "stop_at": percentage_of,
        "rate": lambda text: per_second(text) and text,
    }
    plan: dict[str, Any] = {}
    for name, text in limits.items():
        try:
            plan |= {} if text is None else {name: readers[name](text)}
        except ValueError as error:
            hint = f"'--{name.replace('_', '-')}'"
            raise click.BadParameter(str(error), param_hint=hint) from None
    return {"stop_at": DEFAULT_LIMIT, **plan} if "ramp" in plan else plan


def _resume(runner: _Runner, *, as_json: bool) -> None:
    from consumer_framework.runtime.control.schema import Replay  # noqa: PLC0415

    from .quarantine_views import ramp_line  # noqa: PLC0415

    with closing(look_into(runner.at)) as store:
        runner, ramp = runner.for_reader(store), store.ramp()
    if ramp is None:
        cure = "begin one with --ramp, --rate or --stop-at"
        raise Refusal(f"there is no replay to go on with; {cure}")
    facts = ramp.facts
    terminal.note(ramp_line(facts, time.time()))
    left = facts["rows"] - facts["ran"]
    _replay(runner, Replay(resume=True), ReplayProgress(left, as_json))


def _replay(runner: _Runner, request: Replay, progress: ReplayProgress) -> None:
    at = runner.at
    otherwise = [_AGAIN]
    if request.is_kept:
        progress.resume = at.command("replay", "--resume")
        otherwise.append(f"go on with {progress.resume}")
    with progress:
        try:
            with runner.reached() as instance:
                if instance is None:
                    _replay_here(runner, request, progress)
                else:
                    instance.wait_long()
                    for part in _parts_of(request):
                        for answer in instance.ask(part, "; ".join(otherwise)):
                            progress.tell(answer)
        except KeyboardInterrupt:
            progress.interrupted()
            raise click.exceptions.Exit(_INTERRUPTED) from None
    progress.sum_up(at)
    if not progress.is_good:
        raise click.exceptions.Exit(_FAILED)


def _parts_of(request: Replay) -> Iterator[Replay]:
    """Yield *request* in parts that are not too long; one that is kept stays whole."""
    if request.is_kept:
        yield request
        return
    for portion in portions(request.rows):
        yield replace(request, rows=portion)


def _replay_here(runner: _Runner, request: Replay, progress: ReplayProgress) -> None:
    """Run the handler in this process."""
    from consumer_framework.adapters import log  # noqa: PLC0415
    from consumer_framework.adapters.systemd.notify import is_journal  # noqa: PLC0415
    from consumer_framework.runtime import reactor  # noqa: PLC0415

    at = runner.at
    if not may_exist(at.file):
        raise no_such_instance(at.instance, at.file)
    # An author's module may import it.
    reactor.install()
    from consumer_framework.operate import offline  # noqa: PLC0415
    from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415

    log.set_up(None, is_journal, level=logging.WARNING)
    _warn_of_root(at)
    options = RunOptions(at.file, runner.callback, runner.callback_file, instance=at.instance)
    offline.replay(options, at.directory, request, progress.tell, progress.cut_short)


def _warn_of_root(at: Where) -> None:
    # The service may not be able to write files afterwards that a handler wrote as root.
    if os.geteuid() == 0 and at.directory.stat().st_uid != 0:
        what = f"{at.instance} is stopped: its handler runs here, as root"
        cure = f"to have it run as the service does: systemctl start fm-consumer@{at.instance}"
        click.echo(f"fm-consumer: {what}; {cure}", err=True)


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
        # Python reads and writes NaN and Infinity, which are no JSON (RFC 8259, section 6).
        json.dumps(body, allow_nan=False)
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
