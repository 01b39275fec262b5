# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer replay``: runs a consumer on recorded messages, without a broker."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from . import replay_views as views
from . import terminal
from .exit_codes import epilog
from .options import (
    CONF,
    JSON,
    complete_instance,
    conditions,
    duration,
    may_exist,
    no_such_instance,
    topics,
    where,
)
from .terminal import Command, LiveLine, Refusal, note

# Imported late where they are used: --help and shell completion must be quick.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from consumer_framework.core.conditions import Condition
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.kit.handler_profile import HandlerProfile
    from consumer_framework.kit.recorded import BadRecordError, Recorded
    from consumer_framework.kit.replay import Ended, Replay, Summary

    from .options import Where

_FAILED, _BAD_DATA, _NO_PROFILE = 1, 65, 74
# Bad lines, causes and functions that are shown.
_SHOWN = 20

_MORE = """
\b
Examples:
  fm-consumer replay sample recorded.jsonl
  fm-consumer replay --conf sample.toml --failures recorded.jsonl
  fm-consumer replay --conf sample.toml --topic '#.bodhi.#' --limit 100 *.jsonl
  fm-consumer quarantine export sample | fm-consumer replay --conf sample.toml --traceback -
  curl 'https://apps.fedoraproject.org/datagrepper/v2/search?delta=3600' |
      fm-consumer replay --conf sample.toml -
\b
The end of a message:
  succeeded     the handler returned
  skipped       the handler raised Skip
  dropped       the handler, or a rule, dropped it on purpose
  exhausted     it was out of attempts, and dropped (on_exhausted = "drop" or "reject")
  invalid       its bytes are no message, or do not fit its schema
  quarantined   it would wait in quarantine for an operator
  requeued      it would go back to its queue
  halted        it stopped the instance
  unfinished    the replay ended first, or it was run 100 times without an end
""" + epilog("replay")


def _complete(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    is_first = not (context.params.get("words") or context.params.get("conf"))
    names = complete_instance(context, parameter, incomplete) if is_first else []
    return names or [CompletionItem(incomplete, type="file")]


@click.command(cls=Command, epilog=_MORE)
@click.argument("words", nargs=-1, metavar="INSTANCE MESSAGES...", shell_complete=_complete)
@CONF
@click.option("--callback", default="", metavar="MODULE:OBJECT", help="As for 'run'.")
@click.option("--callback-file", default="", metavar="FILE.py:OBJECT", help="As for 'run'.")
@topics("Run only messages of these topics")
@conditions("Run only messages that fit")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Run the first N of them.")
@click.option(
    "--keep-going", is_flag=True, help="Leave out lines that are no message, and run the others."
)
@click.option("--failures", is_flag=True, help="Show no message that succeeded.")
@click.option("--traceback", is_flag=True, help="Show the traceback of the last failure of each.")
@click.option(
    "--time-limit",
    metavar="DURATION",
    callback=duration,
    help="End after so much virtual time, such as '2h'. Default: 30d, and 1h in a pause.",
)
@click.option(
    "--profile", is_flag=True, help="Show the functions that take most of the handler's time."
)
@click.option(
    "--profile-to",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write that profile for 'python -m pstats' and its viewers, too.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show the log of the consumer, too.")
@JSON
def replay(words: tuple[str, ...], conf: Path | None, **given: Any) -> None:
    """Run the consumer of INSTANCE, or of --conf, on the messages of files, without a broker.

    The settings of its file are in force, the retries too: their delays are virtual, and take no
    time. MESSAGES are files with a JSON object on each line, as `fedora-messaging record`,
    `fm-consumer record`, `fm-consumer quarantine export` and datagrepper write them; "-" is
    standard input.

    The consumer does its work, with all effects on files, databases and other services. Only
    messages that it publishes are counted and not sent. The instance's store and state directory
    are not touched; the consumer gets an empty directory in their place.
    """
    at = where(words, conf, None)
    files = tuple(Path(word) for word in at.rest)
    run = _Run(at, _Options(files=files, **given))
    raise click.exceptions.Exit(run.run())


@dataclass(frozen=True, slots=True)
class _Options:
    """The command line, without the instance."""

    files: tuple[Path, ...]
    callback: str
    callback_file: str
    topics: tuple[str, ...]
    conditions: tuple[Condition, ...]
    limit: int | None
    keep_going: bool
    failures: bool
    traceback: bool
    time_limit: float | None
    profile: bool
    profile_to: Path | None
    verbose: bool
    as_json: bool

    def check(self, at: Where) -> None:
        """Refuse a command line that cannot work."""
        if not self.files:
            what = "name a file of messages, or - for standard input"
            hint = f"; or is {at.instance} one? Then name the configuration with --conf"
            raise click.UsageError(what + hint * Path(at.instance).is_file())
        if list(self.files).count(Path("-")) > 1:
            raise click.UsageError("standard input can be read once")
        for file in self.files:
            if str(file) != "-" and not file.is_file():
                raise Refusal(f"{file}: {_unreadable(file)}")

    def selects(self, delivery: Delivery) -> bool:
        """Tell whether a message is to run."""
        from consumer_framework.core.delivery import readable  # noqa: PLC0415
        from consumer_framework.core.topics import matches  # noqa: PLC0415
        from consumer_framework.operate.watching import View  # noqa: PLC0415

        topic = readable(delivery.routing_key)
        if self.topics and not any(matches(pattern, topic) for pattern in self.topics):
            return False
        if not self.conditions:
            return True
        document = View.of(delivery).document()
        return all(condition.holds(document) for condition in self.conditions)


def _unreadable(file: Path) -> str:
    """Say why *file* is none to read messages from."""
    if file.is_dir():
        return "is a directory; name a file in it"
    if file.exists():
        return "is no regular file, and can be read only once; name - and redirect standard input"
    return "there is no such file"


class _BadLinesError(Exception):
    """A line is no message, and nobody said to go on."""


@dataclass
class _Source:
    """The messages of the files, in their order.

    Attributes:
        options: The command line.
        queues: The queues of the consumer.
        bad: The number of lines that are no message.
        total: The number of messages that will run; None until the files were checked, and with
            standard input.
    """

    options: _Options
    queues: tuple[str, ...]
    clear: Callable[[], None]
    bad: int = 0
    total: int | None = None

    def check(self) -> bool:
        """Look at every line of the files; return False if some are no message."""
        if any(str(file) == "-" for file in self.options.files):
            return True
        self.total = sum(1 for _ in self._selected(keeps_going=True))
        is_good = not self.bad or self.options.keep_going
        if is_good:
            self.bad = 0
        return is_good

    def messages(self) -> Iterator[Recorded]:
        """Yield the messages that are to run.

        Raises:
            _BadLinesError: A line is no message.
        """
        return self._selected(keeps_going=self.options.keep_going)

    def _selected(self, *, keeps_going: bool) -> Iterator[Recorded]:
        count = 0
        for recorded in self._all(keeps_going=keeps_going):
            if self.options.selects(recorded.delivery):
                yield recorded
                count += 1
                if count == self.options.limit:
                    return

    def _all(self, *, keeps_going: bool) -> Iterator[Recorded]:
        from consumer_framework.kit import recorded  # noqa: PLC0415

        for file in self.options.files:
            try:
                for found in recorded.read(file, self.queues):
                    if isinstance(found, recorded.Recorded):
                        yield found
                        continue
                    self._tell(found)
                    if not keeps_going:
                        raise _BadLinesError
            except OSError as error:
                raise Refusal(f"{file} cannot be read: {error.strerror}") from None

    def _tell(self, error: BadRecordError) -> None:
        self.bad += 1
        if self.total is not None:
            # It was told when the files were checked.
            return
        self.clear()
        if self.bad <= _SHOWN:
            terminal.complain(error)
        elif self.bad == _SHOWN + 1:
            note("more lines are no message, and not shown")


@dataclass
class _Run:
    """One run of the command."""

    at: Where
    options: _Options
    out: Any = None
    line: LiveLine = field(init=False)
    began: float = field(default_factory=time.monotonic)
    told: int = 0
    is_set_up: bool = False
    directory: Path | None = None

    def __post_init__(self) -> None:
        self.line = LiveLine(is_on=not self.options.as_json)

    def run(self) -> int:
        """Run the messages; return the exit code."""
        self.options.check(self.at)
        if not may_exist(self.at.file):
            raise no_such_instance(self.at.instance, self.at.file)
        with _output(as_json=self.options.as_json) as self.out, _directory() as self.directory:
            return self._run_in(self.directory)

    def _run_in(self, directory: Path) -> int:
        from consumer_framework.runtime import reactor  # noqa: PLC0415

        # An author's module may import it.
        reactor.install()
        from consumer_framework.kit.handler_profile import HandlerProfile  # noqa: PLC0415
        from consumer_framework.kit.replay import Replay, plan_of_replay  # noqa: PLC0415
        from consumer_framework.runtime.assembly.access import from_outside  # noqa: PLC0415
        from consumer_framework.runtime.assembly.configuration import RunOptions  # noqa: PLC0415

        _log(verbose=self.options.verbose)
        at, given = self.at, self.options
        access = from_outside(at.file, at.instance, lenient=False)
        options = RunOptions(
            at.file,
            given.callback,
            given.callback_file,
            instance=at.instance,
            state_directory=directory,
            access=access,
        )
        settings, plan = plan_of_replay(options)
        source = _Source(given, tuple(settings.queues), self.line.clear)
        if not source.check():
            cure = "mend the file, or leave out such lines with --keep-going"
            note(f"nothing was run: bad lines: {source.bad:,}; {cure}")
            return _BAD_DATA
        profile = HandlerProfile() if given.profile or given.profile_to else None
        current = Replay(
            plan if profile is None else profile.applied_to(plan),
            lambda ended: self._tell(ended, current.summary, source.total),
            **({} if given.time_limit is None else {"longest": given.time_limit}),
        )
        return self._replayed(current, source, profile)

    def _replayed(self, replay: Replay, source: _Source, profile: HandlerProfile | None) -> int:
        is_cut_short = False
        with self._signals(replay):
            try:
                replay.run(self._counted(source))
            except _BadLinesError:
                is_cut_short = True
            finally:
                self.line.clear()
                if self.is_set_up:
                    self._sum_up(replay.summary, source)
        is_saved = profile is None or self._show(profile)
        if replay.is_busy:
            # Its thread would keep the process.
            self._exit_now(128 + self.told)
        if self.told:
            return 128 + self.told
        if is_cut_short:
            return _BAD_DATA
        if not (replay.summary.is_good and not source.bad):
            return _FAILED
        return 0 if is_saved else _NO_PROFILE

    def _counted(self, source: _Source) -> Iterator[Recorded]:
        # The first message is asked for once the consumer is set up.
        self.is_set_up = True
        self.began = time.monotonic()
        yield from source.messages()

    # Signals.

    @contextmanager
    def _signals(self, replay: Replay) -> Iterator[None]:
        def stop(number: int, _frame: FrameType | None) -> None:
            if self.told or not self.is_set_up:
                self.line.clear()
                note("interrupted")
                self._exit_now(128 + number)
            self.told = number
            replay.interrupt()

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _exit_now(self, code: int) -> None:
        for stream in (sys.stdout, sys.stderr, self.out):
            stream.flush()
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        os._exit(code)

    # Output.

    def _tell(self, ended: Ended, summary: Summary, total: int | None) -> None:
        if self.told and not self.options.as_json and ended.fate == "unfinished":
            # The summary counts them.
            return
        try:
            self._print(ended)
        except BrokenPipeError:
            # Nobody reads any more; the interpreter would complain about its flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())
            os.kill(os.getpid(), signal.SIGTERM)
        self.line.show(lambda now: views.progress(summary, total, now - self.began))

    def _print(self, ended: Ended) -> None:
        if self.options.failures and ended.is_good:
            return
        if self.options.as_json:
            document = views.ended_document(ended)
            click.echo(terminal.json_of(document, indent=None), file=self.out)
            return
        self.line.clear()
        for line in views.ended_lines(ended, with_traceback=self.options.traceback):
            click.echo(line, file=self.out)

    def _sum_up(self, summary: Summary, source: _Source) -> None:
        if self.options.as_json:
            document = views.summary_document(summary, source.bad)
            click.echo(terminal.json_of(document, indent=None), file=self.out)
            return
        for line in views.summary_lines(summary, source.bad):
            click.echo(line, file=self.out)
        if not summary.messages and (self.options.topics or self.options.conditions):
            note("no message fits --topic and --where")

    def _show(self, profile: HandlerProfile) -> bool:
        """Show the profile, and save it; return False if that failed."""
        is_saved = True
        if self.options.profile_to is not None:
            try:
                profile.save(self.options.profile_to)
            except OSError as error:
                text = f"{self.options.profile_to} cannot be written: {error.strerror}"
                terminal.complain(OSError(text))
                is_saved = False
        for line in views.profile_lines(profile.top(_SHOWN)):
            click.echo(line, file=sys.stderr if self.options.as_json else self.out)
        return is_saved


def _log(*, verbose: bool) -> None:
    from consumer_framework.adapters import log  # noqa: PLC0415
    from consumer_framework.adapters.systemd.notify import is_journal  # noqa: PLC0415
    from consumer_framework.runtime.observe import log as observe_log  # noqa: PLC0415

    log.set_up(None, is_journal, level=logging.INFO if verbose else logging.WARNING)
    if not verbose:
        # The lines of the command say the same.
        logging.getLogger(observe_log.__name__).setLevel(logging.CRITICAL)


@contextmanager
def _output(*, as_json: bool) -> Iterator[Any]:
    """Yield the stream of the command's output; a consumer that prints must not disturb JSON."""
    out = sys.stdout
    if not as_json:
        yield out
        return
    with redirect_stdout(sys.stderr):
        yield out


@contextmanager
def _directory() -> Iterator[Path]:
    """Yield an empty state directory, which the consumer gets in the place of its own."""
    before = os.environ.get("STATE_DIRECTORY")
    with tempfile.TemporaryDirectory(prefix="fm-replay-", ignore_cleanup_errors=True) as name:
        os.environ["STATE_DIRECTORY"] = name
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["STATE_DIRECTORY"]
            else:
                os.environ["STATE_DIRECTORY"] = before
