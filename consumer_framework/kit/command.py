# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command for each message."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import time
import weakref
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from fedora_messaging.exceptions import ConfigurationException
from pydantic import AfterValidator, BaseModel, Field, model_validator

from consumer_framework.author.consumer import Consumer
from consumer_framework.author.heartbeat import deliveries
from consumer_framework.core.errors import (
    ConsumerFrameworkError,
    Defer,
    DependencyFault,
    Drop,
    Halt,
    Problem,
    Quarantine,
    Retry,
    Skip,
)
from consumer_framework.core.text import Duration, about, plural, printable, printable_lines

from . import process
from .message_json import as_object, line_of
from .places import is_directory, is_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fedora_messaging.message import Message

_log = logging.getLogger(__name__)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL = "/bin/sh"
_OURS = "FM_"


class CommandError(ConsumerFrameworkError):
    """The command failed.

    Attributes:
        code: Its exit code; minus the number of the signal that ended it.
    """

    # Its lines would be those of this module.
    needs_traceback = False

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class CommandTimeoutError(CommandError, TimeoutError):
    """The command took longer than its ``timeout``, and was ended."""


class Output(Enum):
    """The place of the command's output."""

    LOG = "log"
    INHERIT = "inherit"
    DISCARD = "discard"


class OnStop(Enum):
    """The treatment of a command that runs while the instance stops."""

    WAIT = "wait"
    TERMINATE = "terminate"


def _name(name: str) -> str:
    if not name or "=" in name or not name.isprintable():
        raise ValueError("is no name of an environment variable")
    if name.startswith(_OURS):
        raise ValueError("starts with FM_, as the variables of the message do; choose another name")
    return name


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character, which no argument and no variable can have")
    return text


_Text: TypeAlias = Annotated[str, AfterValidator(_text)]
_Name: TypeAlias = Annotated[str, AfterValidator(_name)]
_Codes: TypeAlias = tuple[Annotated[int, Field(ge=0, le=255)], ...]


class CommandConfig(BaseModel):
    """The keys of :class:`RunCommand`."""

    command: Annotated[list[_Text], Field(min_length=1)] | None = None
    """The program and its arguments. No shell sees them."""
    shell: Annotated[_Text, Field(min_length=1)] | None = None
    """A command line for `/bin/sh -c`, in place of `command`."""
    stdin: Literal["message", "body", "none"] = "message"
    """The standard input: one line of JSON with the message, or with its body; or nothing."""
    timeout: Annotated[Duration, Field(gt=0)] = 300.0
    """The command gets SIGTERM after this time, with all its processes."""
    kill_after: Annotated[Duration, Field(ge=0)] = 10.0
    """It gets SIGKILL after this further time."""
    on_stop: OnStop = OnStop.WAIT
    """When the instance stops: `"wait"` for the command, or `"terminate"` it. The message of a
    command that was terminated goes back to its queue."""
    directory: Path | None = None
    """The working directory. Default: the `state_dir` of the instance."""
    environment: dict[_Name, _Text] = Field(default_factory=dict)
    """Variables for the command."""
    pass_environment: tuple[_Name, ...] = ()
    """Variables of the instance that the command gets too. It gets no others."""
    output: Output = Output.LOG
    """`"log"` writes each line to the instance's log, `"inherit"` leaves the standard output to the
    command, `"discard"` shows nothing. A failure has the end of the standard error in any case."""
    success_exit_codes: _Codes = (0,)
    """The message is done."""
    skip_exit_codes: _Codes = ()
    """The message needs no work."""
    retry_exit_codes: _Codes = (75,)
    """Try the message again later, without an error in the log."""
    drop_exit_codes: _Codes = ()
    """Lose the message on purpose."""
    quarantine_exit_codes: _Codes = ()
    """Set the message aside at once, for an operator."""
    dependency_exit_codes: _Codes = ()
    """Something that the command needs is broken: pause, and try this message until it is back."""
    halt_exit_codes: _Codes = ()
    """Stop the instance, and give the message back to its queue."""
    stop_after: Annotated[int, Field(ge=1)] | None = None
    """Stop the instance after so many messages that are done."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.command is None) == (self.shell is None):
            raise ValueError('needs either command = ["program", "argument"] or shell = "..."')
        if self.directory is not None and not self.directory.is_absolute():
            raise ValueError("directory must be an absolute path")
        seen: dict[int, str] = {}
        for key in _EXIT_CODES:
            for code in getattr(self, key):
                if seen.setdefault(code, key) != key:
                    raise ValueError(
                        f"exit code {code} is in {seen[code]} and in {key}; remove one"
                    )
        return self


# The key of exit codes, and the signal of a command that ended with one; None for success.
_EXIT_CODES: dict[str, Callable[[str], Exception] | None] = {
    "success_exit_codes": None,
    "skip_exit_codes": Skip,
    "retry_exit_codes": Retry,
    "drop_exit_codes": Drop,
    "quarantine_exit_codes": Quarantine,
    "dependency_exit_codes": DependencyFault,
    "halt_exit_codes": lambda reason: Halt(1, reason, requeue=True),
}


def signal_of(ended: process.Ended, config: CommandConfig, now: float) -> Exception | None:
    """Return the exception that fits the end of a command; None for success.

    Args:
        ended: The end.
        config: The keys of the consumer.
        now: Seconds since the epoch.
    """
    if ended.is_stopped:
        return Defer(now, "the instance stops; the command was terminated")
    tail = printable_lines(ended.errors.decode(errors="replace")).strip()
    if ended.is_late:
        text = f"the command took longer than {about(config.timeout)}"
        return CommandTimeoutError(_with_errors(text, tail), ended.code)
    text = _end_of(ended.code)
    for key, make in _EXIT_CODES.items():
        if ended.code in getattr(config, key):
            last = tail.rpartition("\n")[2]
            return make(f"{text}: {last}" if last else text) if make else None
    return CommandError(_with_errors(text, tail), ended.code)


def _end_of(code: int) -> str:
    if code >= 0:
        return f"the command ended with exit code {code}"
    try:
        return f"the command was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"the command was ended by signal {-code}"


def _with_errors(text: str, tail: str) -> str:
    return f"{text}; the end of its standard error:\n{tail}" if tail else text


def environment_of(
    message: Message, config: CommandConfig, outer: Mapping[str, str], attempt: int
) -> dict[str, str]:
    """Return the whole environment of the command for *message*.

    Args:
        message: The message.
        config: The keys of the consumer.
        outer: The environment of the instance.
        attempt: The number of this attempt, from 1.
    """
    headers = message._headers  # noqa: SLF001 -- upstream has no public name for them
    own = {
        "ID": message.id,
        "TOPIC": message.topic,
        "QUEUE": message.queue or "",
        "SCHEMA": headers.get("fedora_messaging_schema", ""),
        "SEVERITY": message.severity,
        "SENT_AT": headers.get("sent-at", ""),
        "ATTEMPT": attempt,
    }
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        **{name: outer[name] for name in config.pass_environment if name in outer},
        **config.environment,
        # Publishers choose these texts.
        **{_OURS + name: printable(str(value)) for name, value in own.items()},
    }


class RunCommand(Consumer):
    """Run a command for each message: JSON on its standard input, its exit code decides."""

    Config = CommandConfig
    config: CommandConfig

    def __init__(self, config: CommandConfig) -> None:
        super().__init__(config)
        self._arguments = list(config.command or [_SHELL, "-c", config.shell or ""])
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Not in teardown: an object whose setup fails has none.
        weakref.finalize(self, os.close, self._stop)
        self._done = 0
        self._lock = threading.Lock()

    @classmethod
    def check_config(cls, config: CommandConfig, *, connect: bool) -> Iterator[Problem]:  # noqa: ARG003 -- it asks nobody
        """Look for the program and the directory. The rights of the service are not known here."""
        program = config.command[0] if config.command else _SHELL
        path = config.environment.get("PATH", _PATH)
        is_path_known = "PATH" in config.environment or "PATH" not in config.pass_environment
        if "/" in program:
            is_missing = is_there(Path(program)) is False
        else:
            is_missing = is_path_known and shutil.which(program, os.F_OK, path) is None
        if is_missing:
            where = "" if "/" in program else f" in PATH={path}"
            cure = "correct it, or set PATH in consumer_config.environment"
            yield Problem("command", f"there is no program {program!r}{where}", cure)
        if config.directory is not None and is_directory(config.directory) is False:
            yield Problem("directory", f"there is no directory {config.directory}", "create it")

    def setup(self) -> None:
        """Find the program and the directory.

        Raises:
            ConfigurationException: One of them is not there.
        """
        path = self.config.environment.get("PATH", _PATH)
        if "PATH" in self.config.pass_environment and "PATH" not in self.config.environment:
            path = os.environ.get("PATH", _PATH)
        program = self._arguments[0]
        found = shutil.which(program, path=path)
        if found is None:
            raise ConfigurationException(
                f"consumer_config.command: {program!r} is no program that this user can run "
                f"(PATH={path}); write its whole path, or set PATH in consumer_config.environment"
            )
        self._arguments[0] = found
        directory = self._directory
        if not directory.is_dir():
            raise ConfigurationException(
                f"consumer_config.directory: {directory} is no directory; create it"
            )

    @property
    def _directory(self) -> Path:
        return self.config.directory or self.state_dir

    def handle(self, message: Message) -> None:
        """Run the command for *message*."""
        ended = self._run(message)
        error = signal_of(ended, self.config, time.time())
        if error is not None:
            raise error
        self._count()

    def _run(self, message: Message) -> process.Ended:
        delivery = next(iter(deliveries()), None)
        failed = len(delivery.history.attempts) if delivery is not None else 0
        program = process.Program(
            self._arguments,
            environment_of(message, self.config, os.environ, failed + 1),
            self._directory,
            self.config.timeout,
            self.config.kill_after,
            keeps_output=self.config.output is Output.INHERIT,
        )
        try:
            return process.run(program, self._stdin(message), self._sink, self._stop)
        except OSError as error:
            raise DependencyFault(f"{program.arguments[0]} cannot be run: {error}") from error

    def _stdin(self, message: Message) -> bytes:
        match self.config.stdin:
            case "message":
                return line_of(as_object(message))
            case "body":
                return line_of(message.body)
        return b""

    def _sink(self, line: bytes, *, is_error: bool) -> None:
        if self.config.output is Output.LOG:
            level = logging.WARNING if is_error else logging.INFO
            _log.log(level, "%s", printable(line.decode(errors="replace")))
        elif self.config.output is Output.INHERIT:
            sys.stderr.buffer.write(line + b"\n")
            sys.stderr.buffer.flush()

    def _count(self) -> None:
        with self._lock:
            self._done += 1
            if self._done == self.config.stop_after:
                raise Halt(0, f"stop_after: {plural(self._done, 'message')} done")

    def stop_requested(self) -> None:
        """Let running commands end at once, with ``on_stop = "terminate"``."""
        if self.config.on_stop is OnStop.TERMINATE:
            os.eventfd_write(self._stop, 1)
