# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer record``: writes messages to a file, and takes none from anybody."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consumer_framework.core.errors import FrameworkError
from consumer_framework.core.text import about, plural, size

from . import terminal
from .exit_codes import epilog
from .options import JSON, conditions, duration, topics
from .terminal import Command, LiveLine, Refusal, note
from .watched import Signals, Source, Stopped, distinct, source, stoppable, told

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.adapters.amqp.watching import Loan
    from consumer_framework.core.conditions import Condition
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.settings import Settings

_NOT_WRITTEN = 75
_STANDARD_OUTPUT = "-"
# Messages that a queue lends without --limit.
_USUAL_LOAN = 1000
# Seconds without a message, after which a queue lends no more.
_SILENCE = 2.0
# Messages in memory, and seconds until they are written.
_BATCH, _BATCH_SECONDS = 500, 1.0

_MORE = """
\b
Examples:
  fm-consumer record --fedora --topic 'org.fedoraproject.*.bodhi.#' --for 10m bodhi.jsonl
  fm-consumer record --instance sample --limit 1000 sample.jsonl
  fm-consumer record --instance sample --queue sample waiting.jsonl
  fm-consumer replay sample sample.jsonl
\b
With --queue:
  The messages are lent: no other consumer gets them meanwhile. They go back to their
  places in the queue, marked as redelivered, also if this command dies. So a queue with
  consumers is refused, and a quorum queue, which counts returns against a limit.
""" + epilog("record")


@click.command(cls=Command, epilog=_MORE)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False))
@topics(
    "Record these topics", " Default: the bindings of the configuration, without one all topics."
)
@conditions("Record only messages that fit")
@source
@click.option(
    "--queue",
    metavar="NAME",
    help="Record the messages that wait in this queue now; see below. Default: those that are "
    "published from now on, through a queue of this command's own.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="End after N messages. Default with --queue: 1000.",
)
@click.option(
    "--for", "seconds", metavar="DURATION", callback=duration, help="End after so long: 5m."
)
@JSON
def record(file: Path, **given: Any) -> None:
    """Append messages to FILE, a JSON object on each line, and take none from anybody.

    `fm-consumer replay` and `fm-consumer publish` read such a file. FILE gets whole lines only,
    whatever ends the command, and belongs to this user alone. "-" is standard output. If the
    connection ends, the command connects again; messages of the time between are missing.
    """
    at = Source.taken_from(given)
    run = _Run(_Options(file=file, **given), at)
    run.options.check(at)
    raise click.exceptions.Exit(run.run())


@dataclass(frozen=True, slots=True)
class _Options:
    """The command line, without the broker."""

    file: Path
    conditions: tuple[Condition, ...]
    queue: str | None
    limit: int | None
    seconds: float | None
    as_json: bool

    def check(self, at: Source) -> None:
        """Refuse options that do not go together."""
        if self.queue is not None and (at.topics or at.exchange):
            raise click.UsageError("--queue has the messages of a queue: leave out --topic")
        if self.as_json and self.to_output:
            raise click.UsageError("--json is for the summary: name a FILE")

    @property
    def to_output(self) -> bool:
        """True if the messages go to standard output."""
        return str(self.file) == _STANDARD_OUTPUT


@dataclass
class _Run:
    """One run of the command."""

    options: _Options
    at: Source
    began: float = field(default_factory=time.monotonic)
    count: int = 0
    bytes: int = 0
    _lines: list[str] = field(default_factory=list)
    _oldest: float = 0.0
    _signals: Signals = field(default_factory=Signals)
    _line: LiveLine = field(default_factory=LiveLine)

    def run(self) -> int:
        """Record messages; return the exit code."""
        settings = self.at.settings("fm-consumer record")
        is_new = not self.options.to_output and not self.options.file.exists()
        # Before the connection: it creates the file, or says why it cannot.
        self._write()
        try:
            return self._run(settings)
        except FrameworkError:
            if is_new and not self.count:
                self.options.file.unlink(missing_ok=True)
            raise

    def _run(self, settings: Settings) -> int:
        self.began = time.monotonic()
        try:
            try:
                with stoppable() as self._signals:
                    self._record(settings)
            except Stopped:
                self._signals = Signals()
                self._write()
        except OSError as error:
            self._line.clear()
            text = f"{self.options.file} cannot be written: {error.strerror or error}"
            terminal.complain(OSError(text))
            self._sum_up()
            return _NOT_WRITTEN
        finally:
            self._line.clear()
        self._sum_up()
        return 0

    def _record(self, settings: Settings) -> None:
        if self.options.queue is None:
            self._watch(settings)
        else:
            self._borrow(settings, self.options.queue)
        self._write()

    # The sources.

    def _watch(self, settings: Settings) -> None:
        from consumer_framework.operate import watching  # noqa: PLC0415

        bindings = distinct(settings.bindings)
        events = watching.watch(settings.brokers, bindings, sleep=self._sleep)
        with closing(events):
            for event in events:
                match event:
                    case watching.Connected(host, None):
                        note(f"recording {told(bindings)} at {host}; Ctrl-C ends it")
                    case watching.Connected(host, gap):
                        self._line.clear()
                        missed = f"messages of about {about(gap or 0)} are missing"
                        note(f"connected again, to {host}; {missed}")
                    case watching.Lost(reason, retry_in):
                        self._line.clear()
                        again = f"trying again in {retry_in:g} s"
                        note(f"the connection is lost: {reason}; {again}")
                    case None:
                        self._tick()
                    case delivery:
                        self._add(delivery)
                if self._is_over:
                    return

    def _borrow(self, settings: Settings, queue: str) -> None:
        from consumer_framework.adapters.amqp.watching import LostError  # noqa: PLC0415
        from consumer_framework.core.errors import ExitCode, Fault  # noqa: PLC0415
        from consumer_framework.operate.watching import lend  # noqa: PLC0415

        with lend(settings.brokers, queue, self.options.limit or _USUAL_LOAN) as loan:
            host = f"{queue} at {loan.host}"
            note(f"recording {plural(loan.count, 'message')} of {host}, which go back afterwards")
            try:
                self._read(loan)
            except LostError as error:
                self._write()
                what = f"the connection ended: {error}; {plural(self.count, 'message')} recorded"
                raise Fault(ExitCode.CONNECTION, f"{what}; run the command again") from None
            self._write()
            loan.give_back()

    def _read(self, loan: Loan) -> None:
        got, heard_at = 0, time.monotonic()
        while got < loan.count and time.monotonic() - heard_at < _SILENCE:
            for delivery in loan.wait():
                got, heard_at = got + 1, time.monotonic()
                self._add(delivery)
            self._tick()
            if self._is_over:
                return

    def _sleep(self, seconds: float) -> None:
        time.sleep(max(min(seconds, self._left or seconds), 0))

    # The file.

    def _add(self, delivery: Delivery) -> None:
        from consumer_framework.adapters.store.export import line_of  # noqa: PLC0415

        is_full = self.options.limit is not None and self.count + len(self._lines) >= (
            self.options.limit
        )
        if is_full or not self._fits(delivery):
            return
        if not self._lines:
            self._oldest = time.monotonic()
        self._lines.append(line_of(delivery))
        self._tick()

    def _fits(self, delivery: Delivery) -> bool:
        if not self.options.conditions:
            return True
        from consumer_framework.operate.watching import View  # noqa: PLC0415

        document = View.of(delivery).document()
        return all(condition.holds(document) for condition in self.options.conditions)

    def _tick(self) -> None:
        """Write the lines that wait, if it is time; show the progress."""
        waited = time.monotonic() - self._oldest
        if len(self._lines) >= _BATCH or (self._lines and waited >= _BATCH_SECONDS):
            self._write()
        self._line.show(self._progress)

    def _write(self) -> None:
        """Append the lines that wait, all of them or none, and make them durable.

        Raises:
            OSError: The disk does not take them.
        """
        if self.options.to_output:
            lines, self._lines = self._lines, []
            for line in lines:
                click.echo(line, nl=False)
            self._written(lines)
            return
        # Otherwise a signal would undo the append.
        with self._signals.held():
            lines, self._lines = self._lines, []
            self._append(lines)
            self._written(lines)

    def _written(self, lines: Sequence[str]) -> None:
        self.count += len(lines)
        self.bytes += sum(map(len, lines))

    def _append(self, lines: Sequence[str]) -> None:
        from consumer_framework.adapters.store.export import append  # noqa: PLC0415

        try:
            append(self.options.file, lines)
        except OSError as error:
            if lines:
                raise
            raise Refusal(f"{self.options.file} cannot be opened: {error.strerror}") from None

    # The end.

    @property
    def _left(self) -> float | None:
        if self.options.seconds is None:
            return None
        return self.began + self.options.seconds - time.monotonic()

    @property
    def _is_over(self) -> bool:
        if self.options.limit is not None and self.count + len(self._lines) >= self.options.limit:
            return True
        return self._left is not None and self._left <= 0

    def _progress(self, now: float) -> str:
        count, seconds = self.count + len(self._lines), max(now - self.began, 0.001)
        of = f" of {self.options.limit:,}" if self.options.limit else ""
        left = f", {about(self._left)} left" if self._left is not None else ""
        return f"{count:,}{of} messages, {size(self.bytes)}, {count / seconds:,.0f}/s{left}"

    def _sum_up(self) -> None:
        seconds = time.monotonic() - self.began
        if self.options.as_json:
            file = str(self.options.file)
            found = {"recorded": self.count, "file": file, "seconds": round(seconds, 3)}
            terminal.print_json(found)
            return
        where = "" if self.options.to_output else f" in {self.options.file}"
        note(f"{plural(self.count, 'message')} recorded{where} in {about(seconds)}")
