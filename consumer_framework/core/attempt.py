# SPDX-License-Identifier: GPL-2.0-or-later
"""What went wrong with a message so far."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .printable import clipped, printable
from .summary import formatted, text_of

if TYPE_CHECKING:
    from types import TracebackType

# Characters of what an exception says in one line.
LINE_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of the handler that failed, or one look at bytes that are no message.

    Attributes:
        at: When it ended, in seconds since the epoch.
        error: The exception's class, with its module; for bytes that are no message, what they
            were refused as.
        message: The exception's first line.
        traceback: The whole traceback as text; "" where there was none.
        fingerprint: Equal for failures of the same cause: class and innermost own frame.
    """

    at: float
    error: str
    message: str
    traceback: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a message from its earlier deliveries and attempts.

    Attributes:
        attempts: The failed attempts, oldest first.
        crashes: How often the process died while the handler had the message.
    """

    attempts: tuple[Attempt, ...] = ()
    crashes: int = 0

    def failed(self, attempt: Attempt) -> History:
        """The history with one more failed attempt."""
        return History((*self.attempts, attempt), self.crashes)


NO_HISTORY = History()


def attempt_of(error: BaseException, at: float) -> Attempt:
    """Describe *error*, which ended an attempt *at* seconds since the epoch."""
    text = _storable(formatted(error))
    return Attempt(at, _qualified(type(error)), first_line(error), text, fingerprint(error))


def first_line(error: BaseException) -> str:
    """The first line of what *error* says, in :data:`LINE_LIMIT` characters or so."""
    return printable(clipped(text_of(error).lstrip().partition("\n")[0], LINE_LIMIT))


def said(error: BaseException) -> str:
    """The class of *error* and the first line of what it says."""
    text = first_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _storable(text: str) -> str:
    """JSON may hold half a surrogate pair, and then an error's text does; UTF-8 may not."""
    return text.encode(errors="backslashreplace").decode()


def fingerprint(error: BaseException) -> str:
    """Name the cause of *error*: its class and the innermost frame of the author's own code.

    "Own" is what is not in Python's standard library, not in an installed package other than
    the author's (:func:`is_by_author`) and not the framework; where no frame is, the innermost
    one counts. Line numbers are left out: they change with every edit above them.
    """
    frames = _frames(error.__traceback__)
    own = [frame for frame in frames if is_own(*frame[1:])]
    function, file, _ = (own or frames or [("", "", "")])[-1]
    where = f" in {_short(file)}:{function}" if function else ""
    return f"{_qualified(type(error))}{where}"


def is_by_author(*packages: str) -> None:
    """Count the modules of *packages* as the author's own, wherever they are installed."""
    global _by_author  # noqa: PLW0603 -- a process runs one author's code
    _by_author = frozenset(packages)


_by_author: frozenset[str] = frozenset()
_INSTALLED = tuple(sorted({sysconfig.get_paths()[key] + "/" for key in ("purelib", "platlib")}))
_FOREIGN = (
    *sorted({sysconfig.get_paths()[key] + "/" for key in ("stdlib", "platstdlib")}),
    __file__.rpartition("/core/")[0] + "/",
    # importlib's.
    "<frozen ",
)
# Of whatever Python and user.
_SITES = ("/site-packages/", "/dist-packages/")


def is_own(file: str, module: str) -> bool:
    """Whether *module*, which is in *file*, is the author's code; see :func:`fingerprint`."""
    if file.startswith(_INSTALLED) or any(site in file for site in _SITES):
        return any(f"{module}.".startswith(f"{package}.") for package in _by_author)
    return not file.startswith(_FOREIGN)


def _frames(trace: TracebackType | None) -> list[tuple[str, str, str]]:
    """The function, the file and the module of each frame, the outermost first."""
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
