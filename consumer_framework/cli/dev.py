# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer dev``: a private broker, the consumer of a project, and messages for it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import ExitCode
from consumer_framework.core.text import fit, plural, seconds, width

from . import terminal
from .exit_codes import epilog
from .terminal import Command, note, safe

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer_framework.kit.development.events import Settled
    from consumer_framework.kit.development.session import Session

_CONFIGURED = "configured"
# Messages that one run of --once sends at the most.
_MOST = 1000
_LONGEST = 1000

_MORE = """
\b
Examples:
  fm-consumer dev
  fm-consumer dev --rate 2
  fm-consumer dev --messages recorded.jsonl --retry-delay 10s
  fm-consumer dev --topic '#.buildsys.tag' --conf conf/sample.toml
  fm-consumer dev --once 5
\b
While it runs, and Enter after each:
  (nothing)   send a message
  10          send ten messages
  r           restart the consumer
  q           end
""" + epilog("dev")


def _delay(_context: click.Context, _parameter: click.Parameter, value: str) -> float | None:
    if value == _CONFIGURED:
        return None
    return _positive(value)


def _time(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    return _positive(value)


def _positive(value: str) -> float:
    try:
        found = seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if found <= 0:
        raise click.BadParameter("must be longer than 0")
    return found


@click.command(cls=Command, epilog=_MORE)
@click.option(
    "--conf",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="The configuration of the consumer. Default: the only one in this directory and below it.",
)
@click.option(
    "--callback-file",
    default="",
    metavar="FILE.py:OBJECT",
    help="Handle messages with an object of this Python file.",
)
@click.option(
    "--topic", "pattern", default="#", metavar="PATTERN", help="Send only messages of these topics."
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="Send N messages a second."
)
@click.option(
    "--messages",
    "recorded",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE.jsonl",
    help="Send the messages of this file, with new ids, not generated ones.",
)
@click.option(
    "--once",
    type=click.IntRange(1, _MOST),
    metavar="N",
    help="Send N messages, and end when they are done; watch no files. For CI.",
)
@click.option(
    "--timeout",
    default="1m",
    show_default=True,
    callback=_time,
    metavar="TIME",
    help="The time for the messages of --once.",
)
@click.option(
    "--retry-delay",
    default="1s",
    show_default=True,
    callback=_delay,
    metavar="TIME",
    help=f"Try a failed message again after this time; '{_CONFIGURED}' keeps the delays of the "
    "configuration.",
)
@click.option(
    "--watch",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="Restart the consumer for changes of this file or directory too. May be given several "
    "times. Python files of the project, and its configuration, are watched anyway.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON object for each attempt at a message, for programs; the rest goes to "
    "standard error.",
)
@click.pass_context
def dev(context: click.Context, /, **given: Any) -> None:
    """Run the consumer of a project on a private broker, and restart it when its files change.

    The command starts a RabbitMQ of its own, gives the consumer a copy of its configuration with
    that broker, and sends it valid messages, made from the installed schemas of its topics. It
    shows the fate of each message. At its end nothing is left behind.
    """
    keyboard = sys.stdin.fileno() if not given["once"] and _has_keyboard() else None
    if keyboard is None and not (given["once"] or given["rate"]):
        raise click.UsageError("there is no terminal: say --once N or --rate N")
    if given["once"] and given["rate"]:
        raise click.UsageError("give either --once or --rate, not both")
    context.exit(_run(given, keyboard))


def _has_keyboard() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):
        return False


class _Stopped(BaseException):
    """Told to stop, by a signal."""


class _Signals:
    """Raises :class:`_Stopped` for a signal that ends the session; a later one makes it hurry."""

    def __init__(self) -> None:
        self._is_ending = False
        self._is_hurried = False

    def __call__(self, number: int, _frame: object = None) -> None:
        if not self._is_ending:
            self._is_ending = True
            raise _Stopped
        # A terminal that is closed ends the input too, so the session may be ending already.
        self._is_hurried |= number != signal.SIGHUP

    def session_ends(self) -> None:
        """Take note that the session ends by itself."""
        self._is_ending = True

    def is_hurried(self) -> bool:
        return self._is_hurried

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        # The terminal is closed: SIGHUP. `nohup` has it ignored.
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            for number in numbers:
                if before[number] is not signal.SIG_IGN:
                    signal.signal(number, self)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(given: dict[str, Any], keyboard: int | None) -> int:
    from consumer_framework.kit.development import configuration  # noqa: PLC0415
    from consumer_framework.kit.development.private_broker import PrivateBrokerError  # noqa: PLC0415
    from consumer_framework.kit.development.session import Options, Session  # noqa: PLC0415

    given["file"] = given.pop("conf") or configuration.find(Path.cwd())
    path, colon, name = given["callback_file"].rpartition(":")
    if path:
        # The consumer runs in the directory of the project.
        file = Path(path).resolve()
        given["callback_file"] = f"{file}{colon}{name}"
        given["watch"] += (file,) if file.exists() else ()
    given.update(rate=given["rate"] or 0.0, once=given["once"] or 0, keyboard=keyboard)
    signals = _Signals()
    screen = _JsonScreen() if given.pop("as_json") else _Screen()
    session = Session(Options(**given), screen, signals.is_hurried, signals.session_ends)
    is_good = not given["once"]
    try:
        with signals.caught():
            is_good = session.run() or is_good
    except (_Stopped, BrokenPipeError):
        is_good = not given["once"]
    except PrivateBrokerError as error:
        note(str(error))
        return ExitCode.CONFIGURATION
    with contextlib.suppress(OSError):
        _sum_up(session)
    return ExitCode.OK if is_good else ExitCode.INIT_FAILED


def _sum_up(session: Session) -> None:
    parts = [f"{count:,} {_ENDS[end]}" for end, count in session.ends.items()]
    parts += [f"{session.waiting:,} not done"] if session.waiting else []
    ends = f": {', '.join(parts)}" if parts else ""
    note(f"{plural(session.sent, 'message')} sent{ends}")


_ENDS = {"ack": "acknowledged", "reject": "dropped", "quarantine": "quarantined", "halt": "halted"}
_COLOURS = {"ack": terminal.good, "quarantine": terminal.bad, "halt": terminal.bad}


class _Screen:
    """Writes to standard output, in the width of the terminal."""

    _to_stderr = False

    def __init__(self) -> None:
        self._is_gone = False

    def _show(self, line: str, *, to_stderr: bool | None = None) -> None:
        if self._is_gone:
            return
        try:
            click.echo(line, err=self._to_stderr if to_stderr is None else to_stderr)
        except OSError as error:
            # The terminal is closed, or nobody reads any more. The interpreter would complain about
            # its own flush at the end.
            self._is_gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise BrokenPipeError from error

    def note(self, text: str) -> None:
        self._show(terminal.faint(f"{_now()}  {safe(text)}"))

    def problem(self, text: str) -> None:
        for line in text.splitlines():
            self._show(terminal.bad(f"{_now()}  {safe(line)}"))

    def output(self, line: str) -> None:
        self._show(f"{terminal.faint('          │')} {terminal.safe_lines(line)}")

    def settled(self, event: Settled, *, is_new: bool) -> None:
        columns = terminal.terminal_width() or _LONGEST
        end = f"attempt {event.attempt}, {_duration(event.seconds)}"
        word = f"{event.verb if event.retry_in is None else _again(event.retry_in):<14}"
        room = columns - width(f"{_now()}  {word}    {end}")
        topic = fit(safe(event.topic), max(room, 0), keep_end=True)
        shown = _COLOURS.get(event.disposition, terminal.doubtful)(word)
        self._show(f"{_now()}  {shown}  {terminal.title(topic)}  {terminal.faint(end)}")
        if event.reason:
            self._show(f"          {fit(safe(event.reason), max(columns - 10, 0))}")
        if is_new and "\n" in event.traceback.rstrip():
            self._show(terminal.safe_lines(event.traceback.rstrip(), "          "))


class _JsonScreen(_Screen):
    """Writes an object for each attempt to standard output, and the rest to standard error."""

    _to_stderr = True

    def settled(self, event: Settled, *, is_new: bool) -> None:  # noqa: ARG002 -- all are shown
        self._show(terminal.json_of(asdict(event), indent=None), to_stderr=False)


def _now() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def _again(delay: float) -> str:
    return f"again in {delay:.1f} s" if delay >= 0.05 else "again at once"  # noqa: PLR2004 -- not 0.0


def _duration(duration: float) -> str:
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s"
