# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer outbox``: the relay, and its commands that only read; migrate."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault
from consumer_framework.core.text import plural

from . import options, terminal
from .exit_codes import epilog
from .options import CONF, JSON, OUTPUT, STATE_DIR, no_more, where, words
from .outbox_orders import discard, purge, retry
from .outbox_selection import Selection, command, filters, one_row, opened, settings_of
from .quarantine import write_new
from .reload import NOT_RUNNING, REFUSED, file_of, show
from .selection import row_numbers
from .terminal import Command, Refusal, complain

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.runtime.control.schema import RelayStatusReport, ReloadReport

    from .options import Where

_TROUBLE = 1
_FINE = {"sending", "standby", "idle"}


@click.group()
def outbox() -> None:
    """Send messages from an outbox, and look at those that wait.

    NAME is /etc/fedora-messaging/NAME.toml. Its [consumer_config.framework.outbox] names the
    database; without one, NAME is an instance that keeps its outbox in its state directory.
    Everything works while a relay runs and while none runs.

    \b
    fm-consumer outbox status web                    the relay, and the number of messages
    fm-consumer outbox list web --state dead         those that can never be sent, with reasons
    fm-consumer outbox show web 41                   one message
    fm-consumer outbox retry web 41                  mended? send it again
    """  # noqa: D301 -- click wants the backspace character


outbox.add_command(retry)
outbox.add_command(discard)
outbox.add_command(purge)


@outbox.command(
    cls=Command,
    epilog="""
\b
Examples:
  systemctl start fm-outbox@web            # runs this command as a service
  fm-consumer outbox relay --conf ./web.toml
"""
    + epilog("outbox relay"),
)
@words("NAME")
@CONF
@STATE_DIR
@click.pass_context
def relay(
    context: click.Context, words: tuple[str, ...], conf: Path | None, state_dir: Path | None
) -> None:
    """Send the messages of an outbox until told to stop.

    A message is deleted from the outbox after the broker has confirmed it. If this process dies,
    the next one sends the messages again that it was sending, with the same ids. Of several relays
    of one outbox, one sends, and the others stand by. On SIGTERM or SIGINT it finishes its batch;
    on SIGHUP it reads its file again, as 'fm-consumer outbox reload' tells it to.
    """
    from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415
    from consumer_framework.runtime.outbox import run  # noqa: PLC0415

    from .main import tell_service_manager  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    try:
        options = RunOptions(at.file, instance=at.instance, state_directory=state_dir)
        exit_code = run(options)
    except (ConfigurationError, Fault) as error:
        complain(error)
        tell_service_manager(error)
        exit_code = error.exit_code
    except Exception:
        logging.exception("please report this defect of consumer_framework")  # noqa: LOG015
        exit_code = ExitCode.UNEXPECTED
    context.exit(exit_code)


@outbox.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox reload web
"""
    + epilog("outbox reload"),
)
@words("NAME")
@CONF
@STATE_DIR
@JSON
def reload(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Let a running relay read its configuration again.

    The file is checked whole, and its database is connected to, before anything changes. One that
    is wrong is refused, and the relay goes on as before.
    """
    from consumer_framework.runtime.control.schema import document_of  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    report = _ask_reload(at)
    if as_json:
        terminal.print_json({"outbox": at.instance, **document_of(report)})
    else:
        show(at, report)
    if report.result in {"refused", NOT_RUNNING}:
        raise click.exceptions.Exit(REFUSED)


def _ask_reload(at: Where) -> ReloadReport:
    from consumer_framework.runtime.control.client import ControlError, connected_to  # noqa: PLC0415
    from consumer_framework.runtime.control.schema import Reload, ReloadReport  # noqa: PLC0415
    from consumer_framework.runtime.state_files import relay_sockets  # noqa: PLC0415

    with connected_to(relay_sockets(at.directory, at.instance)) as running:
        if running is None:
            return ReloadReport(NOT_RUNNING)
        running.wait_long()
        request = Reload(file_of(at))
        for answer in running.ask(request, "it reads the file when it is started again"):
            if isinstance(answer, ReloadReport):
                return answer
    raise ControlError("the relay did not answer; see its log (journalctl)")


@outbox.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox status web
  fm-consumer outbox status web --json | jq .waiting
"""
    + epilog("outbox status"),
)
@words("NAME")
@CONF
@STATE_DIR
@JSON
def status(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Show the number of messages in an outbox, and the state of its relay.

    The numbers are those of the database. A relay or an instance that runs on this host as NAME is
    asked for the rest; for others, the lease in the database tells whether there is one.
    """
    from . import outbox_views  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    with opened(at) as store:
        stats, lease, place = store.stats(), store.lease_holder(), store.place
    report, problem = _ask_status(at)
    facts = outbox_views.OutboxFacts(at.instance, place, stats, lease, report, problem)
    now = time.time()
    if as_json:
        terminal.print_json(outbox_views.status_document(facts))
    else:
        for line in outbox_views.status_lines(facts, now):
            click.echo(line)
        is_sent = report is not None or _holds(lease, now)
        for hint in _hints(at, stats.dead, "" if is_sent else _starter(at)):
            click.echo(hint)
    if not (_holds(lease, now) if report is None else report.relay.state in _FINE):
        raise click.exceptions.Exit(_TROUBLE)


def _holds(lease: Any, now: float) -> bool:
    return lease is not None and lease.until > now


def _starter(at: Where) -> str:
    """Return the command that starts the relay of this outbox."""
    is_own = settings_of(at).database is None
    if at.file.absolute().parent == options.CONFIGURATION_DIRECTORY:
        return f"systemctl start fm-{'consumer' if is_own else 'outbox'}@{at.instance}"
    return f"fm-consumer run {at.spelled}" if is_own else command(at, "relay")


def _hints(at: Where, dead: int, starter: str) -> list[str]:
    found = []
    if dead:
        found.append(f"Dead: {terminal.faint(command(at, 'list', '--state dead'))}")
    if starter:
        found.append(f"Send: {terminal.faint(starter)}")
    return found


def _ask_status(at: Where) -> tuple[RelayStatusReport | None, str]:
    """Ask the relay; return its answer, or the reason why it was not asked."""
    from consumer_framework.runtime.control.client import (  # noqa: PLC0415
        ControlError,
        connected_to,
        sockets,
    )
    from consumer_framework.runtime.control.schema import RelayStatus  # noqa: PLC0415
    from consumer_framework.runtime.state_files import relay_sockets  # noqa: PLC0415

    # An instance answers for its own relay.
    places = [*relay_sockets(at.directory, at.instance), *sockets(at.directory, at.instance)]
    try:
        with connected_to(places) as running:
            if running is None:
                return None, ""
            return next(iter([*running.ask(RelayStatus())]), None), ""
    except ControlError as error:
        return None, str(error)


_STATE = click.option(
    "--state",
    type=click.Choice(["waiting", "dead", "any"]),
    default="any",
    show_default=True,
    help="Waiting messages are to be sent; dead ones can never be sent, and wait for you.",
)


@outbox.command(
    "list",
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox list web
  fm-consumer outbox list web --state dead --topic 'org.fedoraproject.*.pdc.*'
  fm-consumer outbox list web --older-than 10m --json | jq '.[].reason'
"""
    + epilog("outbox list"),
)
@words("NAME")
@CONF
@STATE_DIR
@_STATE
@filters
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="So many messages at most.",
)
@JSON
def list_(  # noqa: PLR0913 -- one for each option
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    state: str,
    limit: int,
    as_json: bool,
    **chosen: Any,
) -> None:
    """List messages of an outbox in the order in which they were published."""
    from . import outbox_views  # noqa: PLC0415

    at = where(words, conf, state_dir)
    no_more(at)
    wanted = Selection((), None if state == "any" else state, **chosen)
    with opened(at) as store:
        # One more than asked for tells whether there are more.
        rows = list(wanted.rows(store, limit + 1))
    shown = rows[:limit]
    if as_json:
        terminal.print_json([outbox_views.row_document(row) for row in shown])
        return
    if not rows:
        click.echo(f"nothing is {'here' if state == 'any' else state}")
        return
    for line in outbox_views.row_lines(shown, time.time(), terminal.terminal_width()):
        click.echo(line)
    more = "; there are more: --limit" if len(rows) > len(shown) else ""
    click.echo(f"\n{plural(len(shown), 'message')}{more}")
    click.echo(terminal.faint(f"  {command(at, 'show', shown[0].row)}"))


@outbox.command(
    "show",
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox show web 41
  fm-consumer outbox show web 41 --json | jq .body
"""
    + epilog("outbox show"),
)
@words("NAME ROW")
@CONF
@STATE_DIR
@JSON
def show_(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Show one message readably, and the reason why it was not sent."""
    from . import outbox_views  # noqa: PLC0415

    at = where(words, conf, state_dir)
    number = one_row(at.rest)
    with opened(at) as store:
        [row] = Selection((number,)).rows(store)
    if as_json:
        terminal.print_json(outbox_views.message_document(row))
        return
    for line in outbox_views.message_lines(row, time.time()):
        click.echo(line)
    if row.state == "dead":
        click.echo(f"\nMended? {terminal.faint(command(at, 'retry', row.row))}")


@outbox.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox export web > all.jsonl
  fm-consumer outbox export web --state dead --output dead.jsonl
  fm-consumer publish dead.jsonl          # publishes them as they were
"""
    + epilog("outbox export"),
)
@words("NAME [ROW]...")
@CONF
@STATE_DIR
@_STATE
@filters
@OUTPUT
@click.option("--json", is_flag=True, expose_value=False, help="Changes nothing: JSON it is.")
def export(
    words: tuple[str, ...],
    conf: Path | None,
    state_dir: Path | None,
    *,
    state: str,
    target: Path | None,
    **chosen: Any,
) -> None:
    """Write messages as fedora-messaging's lines of JSON: all, or those that are selected.

    Nothing changes in the outbox. 'fm-consumer publish' and `fedora-messaging publish` read them.
    """
    from . import outbox_views  # noqa: PLC0415

    at = where(words, conf, state_dir)
    numbers = tuple(row_numbers(at.rest))
    wanted = Selection(numbers, None if state == "any" else state, **chosen)
    if numbers and wanted.has_filter:
        raise Refusal("say which: row numbers, or --topic, --key or --older-than")
    with opened(at) as store:
        lines = (f"{outbox_views.export_line(row)}\n" for row in wanted.rows(store))
        if target is None:
            for line in lines:
                click.echo(line, nl=False)
            return
        count = write_new(target, lines)
    click.echo(f"{plural(count, 'message')} written to {target}", err=True)


@outbox.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer outbox migrate web
  sudo -u postgres fm-consumer outbox migrate --conf ./as-owner.toml
"""
    + epilog("outbox migrate"),
)
@words("NAME")
@CONF
@STATE_DIR
@JSON
def migrate(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """Create the tables of an outbox, or bring them to this version. Twice is no harm.

    The account of the configuration needs the right to create tables in its database. Relays that
    run may go on running.
    """
    at = where(words, conf, state_dir)
    no_more(at)
    with opened(at, makes=True) as store:
        is_new = store.fault_of_tables("") is not None
        if is_new:
            store.migrate()
        place = store.place
    if as_json:
        terminal.print_json({"outbox": at.instance, "database": place, "changed": is_new})
        return
    what = "the tables are made, or of this version now" if is_new else "nothing to do"
    click.echo(f"{at.instance}: {what}: {terminal.safe(place)}")
