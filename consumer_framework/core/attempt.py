# SPDX-License-Identifier: GPL-2.0-or-later
"""The failed attempts at a message, and the bounded text that is kept of an exception.

An exception may carry all that its message did: the error of a schema formats the whole body, which
takes half a minute for 8 MB, and formatting happens on the event loop. It may also contain text of
strangers that looks like a line of the log. So everything that is logged or stored of an exception
goes through this module: never more than some kilobytes, quickly made, and printable.
"""

from __future__ import annotations

import sysconfig
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from .text import clipped, printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

# Characters of the text of one exception, of its first line, and of a whole traceback.
TEXT_LIMIT = 4000
LINE_LIMIT = 500
TRACEBACK_LIMIT = 32_000
# Exceptions of a chain that are formatted.
_LONGEST_CHAIN = 20
# Values of a body that a schema's error may show.
_SMALL = 200


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of the handler that failed, or one decoding that did.

    Attributes:
        at: When it ended, in seconds since the epoch.
        error: The exception's class, with its module; for bytes that are no message, the class of
            the decoding error.
        message: The exception's first line.
        traceback: The whole traceback as text; "" where there was none.
        fingerprint: Equal for failures of the same cause: class and innermost own frame.
        route: The route that failed; "" in a consumer without routes.
    """

    at: float
    error: str
    message: str
    traceback: str
    fingerprint: str
    route: str = ""


# The state of a route of one message: it is done; it lost the message on purpose, which is done as
# well; it runs again later; it has failed for good, and waits for an operator.
RouteEnding: TypeAlias = Literal["done", "dropped", "later", "failed"]


class RouteState(NamedTuple):
    """The state of one route of a message. A route without a state has yet to run.

    Attributes:
        route: The name of the route.
        ending: The state.
        until: When it runs again, in seconds since the epoch; 0.0 unless it is ``later``.
        reason: The reason, for the log and for operators.
    """

    route: str
    ending: RouteEnding
    until: float = 0.0
    reason: str = ""

    @property
    def is_done(self) -> bool:
        """True if the route never runs again with the message."""
        return self.ending in {"done", "dropped"}


@dataclass(frozen=True, slots=True)
class History:
    """The past of a message: its earlier deliveries and attempts.

    Attributes:
        attempts: The failed attempts, oldest first.
        crashes: How often the process died while the handler had the message.
        routes: The states of its routes, if it has several.
    """

    attempts: tuple[Attempt, ...] = ()
    crashes: int = 0
    routes: tuple[RouteState, ...] = ()

    def failed(self, attempt: Attempt) -> History:
        """Return the history with one more failed attempt."""
        return replace(self, attempts=(*self.attempts, attempt))

    def with_state(self, state: RouteState) -> History:
        """Return the history with another *state* of a route."""
        others = tuple(each for each in self.routes if each.route != state.route)
        return replace(self, routes=(*others, state))

    def attempts_of(self, route: str) -> int:
        """Return the number of failed attempts of *route*; "" for a consumer without routes."""
        return sum(attempt.route == route for attempt in self.attempts)

    @property
    def for_replay(self) -> History:
        """The history with which an operator has the message run again.

        Earlier attempts stay known, and routes that are done stay done. Other routes run at once,
        and the crashes of the process do not count again.
        """
        return History(self.attempts, routes=tuple(s for s in self.routes if s.is_done))


NO_HISTORY = History()


def attempt_of(error: BaseException, at: float, route: str = "") -> Attempt:
    """Describe *error*, which ended an attempt of *route* at *at* seconds since the epoch."""
    text, kind = _storable(traceback_text(error)), _qualified(type(error))
    return Attempt(at, kind, first_line(error), text, fingerprint(error), route)


def first_line(error: BaseException) -> str:
    """Return the first line of the text of *error*, in :data:`LINE_LIMIT` characters or so."""
    return printable(clipped(text_of(error).lstrip().partition("\n")[0], LINE_LIMIT))


def one_line(error: BaseException) -> str:
    """Return the class of *error* and the first line of its text."""
    text = first_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _storable(text: str) -> str:
    # JSON may hold half a surrogate pair, and then an error's text does; UTF-8 may not.
    return text.encode(errors="backslashreplace").decode()


def text_of(error: BaseException) -> str:
    """Return the text of *error* in :data:`TEXT_LIMIT` characters or so; "" where it raises."""
    try:
        return clipped(str.__str__(_own_text(error)), TEXT_LIMIT)
    except BaseException:  # noqa: BLE001 -- anybody's __str__, which may even exit
        return ""


def bounded(error: BaseException) -> BaseException:
    """Return an exception to format in the place of *error*.

    It is *error* itself, unless the text of one of its chain is too long, or may forge a line of
    the log, or has notes or members of the wrong type. Then it is a stand-in of the same name, with
    the same traceback.
    """
    try:
        return _StandIns().of(error) or error
    except Exception:  # noqa: BLE001 -- anybody's __getattr__ and properties
        return _stand_in(type(error), text_of(error), ()).with_traceback(error.__traceback__)


def traceback_text(error: BaseException) -> str:
    """Return the traceback of *error* in :data:`TRACEBACK_LIMIT` characters or so."""
    lines = "".join(traceback.format_exception(bounded(error)))
    # A SyntaxError shows a line of its source, which may be text that was published.
    return clipped(printable_lines(lines), TRACEBACK_LIMIT)


class _StandIns:
    """The stand-ins of one chain of exceptions."""

    def __init__(self) -> None:
        # None for one that is in the making: a chain may lead back to itself.
        self._known: dict[int, BaseException | None] = {}

    def of(self, error: BaseException) -> BaseException | None:
        if id(error) in self._known:
            return self._known[id(error)]
        if len(self._known) >= _LONGEST_CHAIN:
            return _stand_in(type(error), "(what led to it is left out)", ())
        self._known[id(error)] = None
        text = _in_traceback(error)
        members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        cause = error.__cause__ and self.of(error.__cause__)
        context = error.__context__ and self.of(error.__context__)
        looked_at = [self.of(each) for each in members[:_LONGEST_CHAIN]]
        parts = [each for each in looked_at if each is not None]
        is_same = cause is error.__cause__ and context is error.__context__
        if text is None and is_same and parts == list(members):
            self._known[id(error)] = error
            return error
        stand_in = _stand_in(type(error), text_of(error) if text is None else text, parts)
        stand_in.__traceback__ = error.__traceback__
        stand_in.__context__ = context
        stand_in.__cause__ = cause
        stand_in.__suppress_context__ = error.__suppress_context__
        self._known[id(error)] = stand_in
        return stand_in


def _stand_in(kind: type, text: str, parts: Sequence[BaseException]) -> BaseException:
    names: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__str__": lambda _self: text,
    }
    if parts:
        group: BaseException = type(kind.__name__, (BaseExceptionGroup,), names)(text, parts)
        return group
    made: BaseException = type(kind.__name__, (Exception,), names)()
    return made


def _in_traceback(error: BaseException) -> str | None:
    """Return the text of *error* for a traceback; None where Python may format it itself."""
    notes = _notes(error)
    text = text_of(error)
    if notes:
        text = clipped(f"{text}\n{notes}", TEXT_LIMIT)
    # Lines after the first are indented: none of them looks like one of the log.
    safe = printable_lines(text).replace("\n", "\n    ")
    is_unchanged = not notes and safe == text and not _is_large(error)
    return None if is_unchanged and len(text) < TEXT_LIMIT else safe


def _notes(error: BaseException) -> str:
    notes = getattr(error, "__notes__", ())
    if not isinstance(notes, list | tuple):
        return clipped(repr(notes), TEXT_LIMIT)
    return "\n".join(map(str, notes))


def _own_text(error: BaseException) -> str:
    inner = error.args[0] if len(error.args) == 1 else None
    if isinstance(inner, BaseException) and type(error).__str__ is BaseException.__str__:
        # fedora-messaging's ValidationError, among others.
        return _own_text(inner)
    return str(getattr(error, "message", "")) if _is_large(error) else str(error)


def _is_large(error: BaseException) -> bool:
    """Tell whether *error* is jsonschema's, or carries one that is, and formats a large value."""
    try:
        if len(error.args) == 1 and isinstance(error.args[0], BaseException):
            return _is_large(error.args[0])
        if not (hasattr(error, "instance") and hasattr(error, "validator_value")):
            return False
        return not _is_small(error.instance)
    except Exception:  # noqa: BLE001 -- anybody's properties, or one that carries itself
        return False


def _is_small(value: Any) -> bool:
    waiting, seen = [value], 0
    while waiting:
        each = waiting.pop()
        seen += 1
        if isinstance(each, str | bytes):
            seen += len(each) // 100
        elif isinstance(each, dict):
            seen += len(each)
            waiting += each.values() if seen < _SMALL else ()
        elif isinstance(each, list | tuple):
            waiting += each if len(each) < _SMALL else ()
            seen += len(each)
        if seen >= _SMALL:
            return False
    return True


def fingerprint(error: BaseException) -> str:
    """Name the cause of *error*: its class and the innermost frame of the author's own code.

    A frame is the author's own if its code is not in Python's standard library, not in an installed
    package other than the author's (:func:`set_author_packages`), and not in the framework. If no
    frame is, the innermost one counts. Line numbers are left out: they change with every edit above
    them.
    """
    frames = _frames(error.__traceback__)
    own = [frame for frame in frames if is_own(*frame[1:])]
    function, file, _ = (own or frames or [("", "", "")])[-1]
    where = f" in {_short(file)}:{function}" if function else ""
    return f"{_qualified(type(error))}{where}"


def set_author_packages(*packages: str) -> None:
    """Count the modules of *packages* as the author's own, wherever they are installed."""
    global _by_author  # noqa: PLW0603 -- a process runs one author's code
    _by_author = frozenset(packages)


_by_author: frozenset[str] = frozenset()
_INSTALLED = tuple(sorted({sysconfig.get_paths()[key] + "/" for key in ("purelib", "platlib")}))
_FOREIGN = (
    *sorted({sysconfig.get_paths()[key] + "/" for key in ("stdlib", "platstdlib")}),
    # importlib's.
    "<frozen ",
)
_FRAMEWORK = __name__.partition(".")[0]
# The packages of any Python and user.
_SITES = ("/site-packages/", "/dist-packages/")


def is_own(file: str, module: str) -> bool:
    """Tell whether *module*, which is in *file*, is the author's code; see :func:`fingerprint`."""
    if file.startswith(_INSTALLED) or any(site in file for site in _SITES):
        return any(f"{module}.".startswith(f"{package}.") for package in _by_author)
    return not (file.startswith(_FOREIGN) or module.partition(".")[0] == _FRAMEWORK)


def _frames(trace: TracebackType | None) -> list[tuple[str, str, str]]:
    """Return the function, the file and the module of each frame, the outermost first."""
    found = []
    while trace is not None:
        code = trace.tb_frame.f_code
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        found.append((code.co_name, code.co_filename, module))
        trace = trace.tb_next
    return found


def _qualified(kind: type) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _short(file: str) -> str:
    return "/".join(file.split("/")[-2:])
