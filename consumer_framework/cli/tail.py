# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer tail``: shows the messages of topics as they are published."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.text import about, fit, plural, width

from . import terminal
from .exit_codes import epilog
from .options import conditions, topics
from .terminal import Command, note, safe
from .watched import Source, Stopped, distinct, source, stoppable, told

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.core.conditions import Condition
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.operate.watching import View
    from consumer_framework.settings import Settings

_WARNING, _ERROR = 30, 40
# Missing classes that the summary names.
_NAMED = 5
# Columns of a summary where there is no terminal; --full and --json show all of a message.
_LONGEST = 1000

_MORE = """
\b
Examples:
  fm-consumer tail --fedora
  fm-consumer tail --fedora --topic 'org.fedoraproject.*.bodhi.#'
  fm-consumer tail --fedora --topic '#.buildsys.tag' --where body.name=kernel --full
  fm-consumer tail --instance sample
  fm-consumer tail --url amqp://localhost --where 'body.build.id>1000' --count 1
  fm-consumer tail --conf sample.toml --json > recorded.jsonl
\b
Conditions of --where:
  body.build.name=kernel    equal; a list fits if one of its entries does
  body.build.name!=kernel   not equal, or not there
  topic~'bodhi|koji'        the regular expression is found; !~ is the contrary
  body.build.id>1000        also <, <= and >=
  headers.x-request-id      there is one
The first word is topic, id, queue, exchange, severity, headers or body.
""" + epilog("tail")


@click.command(cls=Command, epilog=_MORE)
@topics("Show these topics", " Default: the bindings of the configuration, without one all topics.")
@conditions("Show only messages that fit")
@source
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option("--full", is_flag=True, help="Show ids, headers and bodies, too.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON object on each line, as 'fm-consumer publish' reads them.",
)
def tail(**given: Any) -> None:
    """Show messages as they are published, and take none from anybody.

    The command has a queue of its own, which is gone when it ends. A message takes one line: time,
    topic, and the summary of its message class, or its body if that class is not installed. A line
    about a message that cannot be decoded, or does not fit its schema, says so.

    If the connection ends, the command connects again; messages of the time between are missing.
    """
    at = Source.taken_from(given)
    options = _Options(**given)
    options.check()
    _Run(options, at.settings("fm-consumer tail")).run()


@dataclass(frozen=True, slots=True)
class _Options:
    """The command line."""

    conditions: tuple[Condition, ...]
    count: int | None
    full: bool
    as_json: bool

    def check(self) -> None:
        """Refuse options that do not go together."""
        if self.full and self.as_json:
            raise click.UsageError("--json shows everything: leave out --full")


@dataclass
class _Run:
    """One run of the command."""

    options: _Options
    settings: Settings
    began: float = field(default_factory=time.monotonic)
    received: int = 0
    shown: int = 0
    undecodable: int = 0
    # By the name of a class that is not installed: a topic, and the number of messages.
    missing: dict[str, tuple[str, int]] = field(default_factory=dict)

    def run(self) -> None:
        """Show messages until told to stop."""
        try:
            with stoppable():
                self._watch()
        except Stopped:
            pass
        except BrokenPipeError:
            # Nobody reads any more; the interpreter would complain about its flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._sum_up()

    def _watch(self) -> None:
        from consumer_framework.operate import watching  # noqa: PLC0415

        bindings = distinct(self.settings.bindings)
        with closing(watching.watch(self.settings.brokers, bindings)) as events:
            for event in events:
                match event:
                    case watching.Connected(host, gap) if gap is not None:
                        missed = f"messages of about {about(gap)} are missing"
                        note(f"connected again, to {host}; {missed}")
                    case watching.Connected(host):
                        note(f"watching {told(bindings)} at {host}; Ctrl-C ends it")
                    case watching.Lost(reason, retry_in):
                        again = f"trying again in {retry_in:g} s"
                        note(f"the connection is lost: {reason}; {again}")
                    case None:
                        pass
                    case delivery if self._is_last(watching.View.of(delivery)):
                        return

    def _is_last(self, view: View) -> bool:
        self.received += 1
        if not view.is_known:
            topic, count = self.missing.get(view.schema, (view.topic, 0))
            self.missing[view.schema] = topic, count + 1
        self.undecodable += view.message is None
        document = view.document() if self.options.conditions else {}
        if not all(condition.holds(document) for condition in self.options.conditions):
            return False
        self._show(view)
        self.shown += 1
        return self.shown == self.options.count

    def _show(self, view: View) -> None:
        if self.options.as_json:
            from consumer_framework.adapters.store.export import line_of  # noqa: PLC0415

            click.echo(line_of(view.delivery), nl=False)
            return
        click.echo(_line(view))
        if self.options.full:
            for line in _full_lines(view.delivery, view.body):
                click.echo(line)

    def _sum_up(self) -> None:
        count = plural(self.shown, "message")
        seconds = time.monotonic() - self.began
        others = f" of {self.received:,}" if self.received != self.shown else ""
        bad = f"; {self.undecodable:,} of them invalid" if self.undecodable else ""
        note(f"{count} shown{others} in {about(seconds)}{bad}")
        for schema, (topic, number) in list(self.missing.items())[:_NAMED]:
            cure = f"see '{shlex.join(['fm-consumer', 'schemas', 'for', topic])}'"
            what = f"the class {schema} of {plural(number, 'message')} is not installed here"
            note(f"{what}: {cure}")


def _line(view: View) -> str:
    """Return the line about a message, in the width of a terminal."""
    at = datetime.fromtimestamp(view.delivery.received_at).astimezone().strftime("%H:%M:%S")
    topic = safe(view.topic) or "(no topic)"
    mark = "INVALID: " if view.message is None else ""
    columns = terminal.terminal_width()
    taken = width(f"{at}  {topic}  {mark}")
    left = _LONGEST if columns is None else max(columns - taken, 0)
    # fit() takes one character after the other.
    summary = fit(safe(view.summary[: 2 * left + 1]), left)
    if view.message is None:
        summary = terminal.bad(f"{mark}{summary}")
    elif view.severity >= _ERROR:
        summary = terminal.bad(summary)
    elif view.severity >= _WARNING:
        summary = terminal.doubtful(summary)
    return f"{terminal.faint(at)}  {terminal.title(topic)}  {summary}"


def _full_lines(delivery: Delivery, body: Any) -> Iterator[str]:
    headers = delivery.properties.headers or {}
    shown = {"id": delivery.message_id, **{str(key): headers[key] for key in headers}}
    yield from terminal.pairs((key, _text(value)) for key, value in shown.items())
    if body is None:
        yield terminal.faint(f"  {plural(len(delivery.body), 'byte')}, not JSON")
        yield terminal.safe_lines(delivery.body[:4096].decode("utf-8", "backslashreplace"), "  ")
    else:
        text = json.dumps(body, indent=2, ensure_ascii=False, default=terminal.as_json)
        yield terminal.safe_lines(text, "  ")
    yield ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=terminal.as_json)
