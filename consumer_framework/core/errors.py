# SPDX-License-Identifier: GPL-2.0-or-later
"""Every exception of the framework, and the exit codes of the process.

There are two families under one root. A handler raises *signals* to choose the disposition of its
delivery. *Framework errors* end the instance. A :class:`ConfigurationError` has all problems of a
configuration, which a :class:`ProblemCollector` collects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, ParamSpec, TypeVar

from .text import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

# The last moment of the year 9999, in seconds since the epoch: the last that calendars show.
LATEST = 253402300799.0


class ExitCode(IntEnum):
    """Exit codes of ``fm-consumer run``.

    10 to 15 mean the same as for ``fedora-messaging consume``; 75 and 78 are ``EX_TEMPFAIL`` and
    ``EX_CONFIG`` of sysexits(3). The unit's ``RestartPreventExitStatus=`` names 78.
    """

    OK = 0
    INIT_FAILED = 1
    USAGE = 2
    BAD_DECLARATION = 10
    UNEXPECTED = 11
    CANCELED = 12
    HANDLER_FAILED = 13
    CONNECTION = 14
    PERMISSION = 15
    TEMPORARY = 75
    CONFIGURATION = 78


class ConsumerFrameworkError(Exception):
    """The root of every exception that the framework defines.

    Attributes:
        needs_traceback: False if the text says all, so that the log needs no traceback.
    """

    needs_traceback: ClassVar[bool] = True


class Signal(ConsumerFrameworkError):  # noqa: N818 -- a signal is no error
    """Raised by a handler to choose the disposition of its delivery; not an error."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Skip(Signal):
    """Success that did nothing; counted apart.

    Args:
        reason: Why, for the log.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(Signal):
    """Try the message again, as often and as late as the recovery settings allow.

    Args:
        reason: Why, for the log.
        after: How long until then, as ``"5m"`` or in seconds; None for the next of the
            configured delays.

    Raises:
        ValueError: *after* is no length of time.
    """

    def __init__(self, reason: str = "", *, after: str | float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = None if after is None else seconds(after)


class Defer(Signal):
    """Not a failure: run the message again at *until*.

    Args:
        until: An aware :class:`datetime.datetime`, or seconds since the epoch.
        reason: Why, for the log.

    Raises:
        ValueError: *until* is no moment between 1970 and 9999.
    """

    def __init__(self, until: datetime | float, reason: str = "") -> None:
        super().__init__(until, reason)
        self.until = until.timestamp() if isinstance(until, datetime) else float(until)
        if not 0 <= self.until <= LATEST:
            raise ValueError(f"until={until!r} is no time, in seconds since the epoch")
        self.reason = reason


class Drop(Signal):
    """Lose the message on purpose. A queue with a dead-letter exchange keeps it there.

    Args:
        reason: Why, for the log.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Quarantine(Signal):
    """Set the message aside now, for an operator.

    Args:
        reason: Why, for the log and the operator.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class StepResultError(Quarantine, TypeError):
    """The result of a step is no JSON, so the step was done and cannot be recorded.

    It is a quarantine: a retry would do the step again.
    """


class DependencyFault(Signal):
    """Something that the handler needs is broken, not the message.

    Args:
        reason: The broken thing, for the log and ``systemctl status``.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Halt(Signal):
    """Stop the instance after this message.

    Args:
        exit_code: The exit code of the process, 0 to 255; None for 0, as ``sys.exit`` has it.
        reason: Why, for the log.
        requeue: True gives the message back to its queue; False counts it as handled.
    """

    def __init__(
        self, exit_code: int | None = 0, reason: str = "", *, requeue: bool = False
    ) -> None:
        super().__init__(exit_code, reason)
        self.exit_code = exit_code or 0
        self.reason = reason
        self.requeue = requeue


class FrameworkError(ConsumerFrameworkError):
    """The instance cannot start, or cannot go on."""


class Fault(FrameworkError):  # noqa: N818 -- the field's word
    """The instance cannot go on; restarting it may help.

    Args:
        exit_code: The exit code of the process.
        message: One line that names the object and a cure.
    """

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class HandlerTimeoutError(ConsumerFrameworkError, TimeoutError):
    """A handler took longer than ``handler_timeout``, and was cancelled."""


class StoreError(FrameworkError):
    """The store cannot be written; the message stays with the broker.

    Args:
        message: One line with the file and the system's reason.
        lasting: Whether it stays so until somebody changes something. Otherwise it may pass: the
            disk is full, or another process has the store.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class DamagedRowError(StoreError):
    """A row of the store differs from the one that was written; its message cannot be run.

    Args:
        row: Its number.
        reason: The damage, in words.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} is damaged: {reason}; export it, and drop it", lasting=True)
        self.row = row
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        path: The TOML path of the key (``qos.prefetch_count``), or ``""`` for the whole file.
        message: The problem in words.
        cure: The cure, or ``""`` where the message says it.
        source: The file, or other place, that it is in; ``""`` for that of its error.
        line: The number of its line in that file, from 1; 0 if it is unknown.
    """

    path: str
    message: str
    cure: str = ""
    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        cure = f"; {self.cure}" if self.cure else ""
        return f"{where}{self.message}{cure}"


class TemporaryProblem(Problem):
    """A problem that may be over at the next start, without an edit."""


class ConfigurationError(FrameworkError):
    """The configuration cannot start an instance.

    The exit code keeps systemd from trying again, unless all problems are temporary ones.

    Args:
        problems: Everything that is wrong, not just the first thing.
        source: The file, or other place, that the configuration came from.
    """

    def __init__(self, *problems: Problem, source: str = "") -> None:
        super().__init__(problems, source)
        self.problems = problems
        self.source = source

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the process."""
        is_temporary = all(isinstance(problem, TemporaryProblem) for problem in self.problems)
        return ExitCode.TEMPORARY if self.problems and is_temporary else ExitCode.CONFIGURATION

    @property
    def located(self) -> tuple[Problem, ...]:
        """The problems, each with the place that it is in."""
        return tuple(replace(p, source=p.source or self.source) for p in self.problems)

    def __str__(self) -> str:
        places = ((f"{p.source}: " if p.source else "", p) for p in self.located)
        return "\n".join(f"{where}{problem}" for where, problem in places)


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class ProblemCollector:
    """Calls one function after the other, and collects the problems that they raise.

    Args:
        source: The place of problems that name none themselves.
    """

    def __init__(self, source: str = "") -> None:
        self._source = source
        self._problems: list[Problem] = []

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems so far, each with its place, and none twice."""
        return tuple(dict.fromkeys(self._problems))

    def call(
        self,
        function: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result | None:
        """Call *function*; return None if it raised a :class:`.ConfigurationError`."""
        try:
            return function(*args, **kwargs)
        except ConfigurationError as error:
            located = ConfigurationError(*error.located, source=self._source)
            self._problems += located.located
            return None

    def error(self) -> ConfigurationError:
        """Return all problems as one error."""
        return ConfigurationError(*self.problems)
