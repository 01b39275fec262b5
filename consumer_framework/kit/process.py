# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one program to its end, and leaves nothing of it behind.

The program leads a session, and so a process group, of its own. The group is ended as a whole:
at the time limit and at a stop with SIGTERM, and with SIGKILL some time later. Once the program
itself has ended, processes that it left in its group get SIGKILL. The program is reaped only after
that: until then its number, and so that of the group, cannot belong to anybody else.

No step waits for an end of the output, which a process that left the group may have open for ever.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol, Self

from consumer_framework.author.heartbeat import heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_CHUNK = 65536
# More than a pipe holds. A process that left the group may write for ever.
_LAST_CHUNKS = 32
# Bytes after which a line without an end is passed on.
_LONGEST_LINE = 4096
# Bytes at the end of the errors that a failure shows.
_TAIL = 4096
# Seconds between two heartbeats at the most.
_BEAT = 5.0


class Sink(Protocol):
    """Takes the program's output, line by line, without the newline."""

    def __call__(self, line: bytes, *, is_error: bool) -> None:
        """Take one *line*, of the standard error if *is_error*."""
        ...


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run.

    Attributes:
        arguments: The program and its arguments.
        environment: All of its environment.
        directory: Its working directory.
        timeout: Seconds that it may take.
        kill_after: Seconds between SIGTERM and SIGKILL.
        keeps_output: It writes to the standard output of this process, not to the sink.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    timeout: float
    kill_after: float
    keeps_output: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a program.

    Attributes:
        code: Its exit code; minus the number of the signal that ended it.
        is_late: It had reached its time limit.
        is_stopped: The caller's stop ended it.
        errors: The end of its standard error.
    """

    code: int
    is_late: bool
    is_stopped: bool
    errors: bytes


def run(program: Program, stdin: bytes, sink: Sink, stop: int) -> Ended:
    """Run *program* to its end.

    Args:
        program: The program.
        stdin: Its standard input. A program that does not read it is no error.
        sink: Takes its output.
        stop: A file descriptor. Once it can be read, the program gets SIGTERM.

    Raises:
        OSError: The program cannot be started.
        ValueError: An argument, or a value of the environment, has a NUL character.
    """
    process = subprocess.Popen(  # noqa: S603 -- the operator's program
        list(program.arguments),
        env=dict(program.environment),
        cwd=program.directory,
        stdin=subprocess.PIPE,
        stdout=None if program.keeps_output else subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )
    try:
        with _Run(process, program, stdin, sink) as running:
            return running.to_end(stop)
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Not reaped, so the number is still the program's own.
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


@dataclass
class _Output:
    """One stream of the program, cut into lines."""

    sink: Callable[[bytes], None]
    rest: bytes = b""
    tail: bytes = b""

    def feed(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-_TAIL:]
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.sink(line)
        while len(self.rest) > _LONGEST_LINE:
            self.sink(self.rest[:_LONGEST_LINE])
            self.rest = self.rest[_LONGEST_LINE:]

    def end(self) -> None:
        if self.rest:
            self.sink(self.rest)
        self.rest = b""


@dataclass
class _Run:
    """The life of one process."""

    process: subprocess.Popen[bytes]
    program: Program
    stdin: bytes
    sink: Sink
    is_late: bool = False
    is_stopped: bool = False
    is_ended: bool = False
    is_killed: bool = False
    kill_at: float = float("inf")
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._end_at = time.monotonic() + self.program.timeout
        self._output = _Output(lambda line: self.sink(line, is_error=False))
        self._errors = _Output(lambda line: self.sink(line, is_error=True))
        with ExitStack() as stack:
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                if stream is not None:
                    stack.enter_context(stream)
                    os.set_blocking(stream.fileno(), False)
            self._selector = stack.enter_context(selectors.DefaultSelector())
            self._life = os.pidfd_open(self.process.pid)
            stack.callback(os.close, self._life)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def to_end(self, stop: int) -> Ended:
        self._register(stop)
        while not self.is_ended:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._look_at_time()
        _signal_group(self.process, signal.SIGKILL)
        self._read_rest()
        code = self.process.wait()
        return Ended(code, self.is_late, self.is_stopped, self._errors.tail)

    def _register(self, stop: int) -> None:
        register, read, write = self._selector.register, selectors.EVENT_READ, selectors.EVENT_WRITE
        register(self._life, read, self._ended)
        register(stop, read, lambda: self._stop(stop))
        for stream, output in self._streams():
            register(stream, read, lambda s=stream, o=output: self._read(s, o))
        if self.process.stdin is not None:
            register(self.process.stdin, write, self._write)

    def _streams(self) -> list[tuple[IO[bytes], _Output]]:
        pairs = ((self.process.stdout, self._output), (self.process.stderr, self._errors))
        return [(stream, output) for stream, output in pairs if stream is not None]

    def _ended(self) -> None:
        self.is_ended = True

    def _stop(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        self.is_stopped = not self.is_late
        self._terminate()

    def _read(self, stream: IO[bytes], output: _Output) -> None:
        if not self._read_once(stream, output):
            self._selector.unregister(stream)

    def _read_once(self, stream: IO[bytes], output: _Output) -> bool:
        data = stream.read(_CHUNK)
        output.feed(data or b"")
        # b"" is the end; None means that there is nothing now.
        return data != b""

    def _write(self) -> None:
        stream = self.process.stdin
        assert stream is not None  # noqa: S101 -- it was registered
        try:
            self.stdin = self.stdin[stream.write(self.stdin[:_CHUNK]) or 0 :]
        except OSError:
            self.stdin = b""
        if not self.stdin:
            self._selector.unregister(stream)
            stream.close()

    def _patience(self) -> float:
        left = min(self._end_at, self.kill_at) - time.monotonic()
        return max(0.0, min(left, _BEAT))

    def _look_at_time(self) -> None:
        now = time.monotonic()
        if now >= self.kill_at:
            _signal_group(self.process, signal.SIGKILL)
            self.is_killed = True
            self.kill_at = self._end_at = float("inf")
        elif now >= self._end_at:
            self._end_at = float("inf")
            self.is_late = not self.is_stopped
            self._terminate()
        if not self.is_killed:
            # The watchdog is to see a process that not even SIGKILL ends.
            heartbeat()

    def _terminate(self) -> None:
        _signal_group(self.process, signal.SIGTERM)
        self.kill_at = min(self.kill_at, time.monotonic() + self.program.kill_after)

    def _read_rest(self) -> None:
        for stream, output in self._streams():
            for _ in range(_LAST_CHUNKS):
                if not self._read_once(stream, output):
                    break
            output.end()
