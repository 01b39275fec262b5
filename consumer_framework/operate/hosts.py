# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks several hosts for the status of their instances, over ssh and in parallel.

Each host runs ``fm-consumer status --json``, and :mod:`.rows` reads its document.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from consumer_framework.core.errors import FrameworkError

from .rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .rows import Row

# No question can be answered: there are several hosts at a time.
SSH = ("ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
PROGRAM = "fm-consumer"
# Seconds in which a host must answer. An instance that hangs takes some of them.
TIMEOUT = 15.0
_ASKED_AT_ONCE = 16
# ssh(1) and sh(1): the exit code if there was no connection, and if there is no such program.
_NO_CONNECTION, _NO_PROGRAM = 255, 127
# Those of `fm-consumer status` with a document: all is well, and an instance does not run.
_ANSWERS = frozenset({0, 3})
# A host begins with no hyphen: ssh would take it for an option.
_HOST = re.compile(r"[^-\s,][^\s,]*")
# Bytes; 200 instances have a tenth of it.
_LONGEST_ANSWER = 16 << 20


class HostsError(FrameworkError):
    """A host cannot be asked.

    Args:
        message: One line that says what to do.
    """

    exit_code = 2


class _LateError(HostsError):
    """The host took too long."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way to a host.

    Attributes:
        ssh: The command before the name of the host.
        program: The command line for ``fm-consumer`` there; a shell there reads it.
        timeout: Seconds in which a host must answer.
    """

    ssh: Sequence[str] = SSH
    program: str = PROGRAM
    timeout: float = TIMEOUT


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """The answer of a host.

    Attributes:
        host: Its name.
        document: As ``fm-consumer status --json`` prints it; None without an answer.
        problem: The reason why there is none; "" otherwise.
    """

    host: str
    document: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def rows(self) -> list[Row]:
        """Return its instances."""
        return [] if self.document is None else rows_of(self.document, self.host)


def hosts_in(given: Iterable[str]) -> list[str]:
    """Split lists such as ``"a,b"``, and leave out repetitions.

    Raises:
        ValueError: A name is none of a host.
    """
    names = [name.strip() for text in given for name in text.split(",")]
    for name in names:
        if not _HOST.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a host")
    return list(dict.fromkeys(names))


class Hosts:
    """Runs ``fm-consumer`` on other hosts.

    Args:
        way: The way to them.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def ask_all(self, hosts: Sequence[str], names: Sequence[str]) -> list[HostAnswer]:
        """Ask all *hosts* at once for the status of their instances.

        Args:
            hosts: Their names, as ssh takes them.
            names: Instances; none for all of each host.

        Raises:
            HostsError: The program that connects is not here.
        """
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            return list(pool.map(lambda host: self._ask(host, names), hosts))

    def run(self, host: str, words: Sequence[str]) -> str:
        """Run ``fm-consumer`` with *words* on a host, and return its output.

        Raises:
            HostsError: There is no connection, or the command failed; with its last line.
        """
        exit_code, output, complaints = self._output(host, words)
        if exit_code:
            raise HostsError(_problem(exit_code, complaints, self._way.program))
        return output

    def close(self) -> None:
        """End the connections that wait for an answer."""
        with self._lock:
            for process in self._running:
                process.kill()

    def _ask(self, host: str, names: Sequence[str]) -> HostAnswer:
        try:
            exit_code, output, complaints = self._output(host, ["status", "--json", *names])
        except _LateError as error:
            return HostAnswer(host, problem=str(error))
        document = _document(output) if exit_code in _ANSWERS else None
        if document is not None:
            return HostAnswer(host, document)
        return HostAnswer(host, problem=_problem(exit_code, complaints, self._way.program))

    def _output(self, host: str, words: Sequence[str]) -> tuple[int, str, str]:
        command = f"{self._way.program} {shlex.join(words)}"
        # Files, not pipes: a connection that ssh shares stays open, and so would a pipe.
        with TemporaryFile() as output, TemporaryFile() as complaints:
            exit_code = self._run([*self._way.ssh, host, command], output, complaints)
            return exit_code, _text(output), _text(complaints)

    def _run(self, words: Sequence[str], output: IO[bytes], complaints: IO[bytes]) -> int:
        try:
            process = subprocess.Popen(  # noqa: S603 -- the operator's own command
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=complaints
            )
        except OSError as error:
            reason = error.strerror or str(error)
            what = f"{words[0]!r} cannot be run: {reason}; install OpenSSH's client, or give --ssh"
            raise HostsError(what) from error
        with process, self._known(process):
            try:
                return process.wait(self._way.timeout)
            except subprocess.TimeoutExpired:
                raise _LateError(f"it did not answer within {self._way.timeout:.0f} s") from None
            finally:
                process.kill()

    @contextmanager
    def _known(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        with self._lock:
            self._running.add(process)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_LONGEST_ANSWER).decode(errors="replace")


def _document(text: str) -> Mapping[str, Any] | None:
    # A login script may print something before it.
    begin = text.find("{\n") if not text.startswith("{") else 0
    try:
        found = json.loads(text[max(begin, 0) :])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("groups"), list) else None


def last_line(text: str) -> str:
    """Return the last line of an output of ``fm-consumer``, without its name; "" for none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("fm-consumer: ") if lines else ""


def _problem(exit_code: int, complaints: str, program: str) -> str:
    said = last_line(complaints) or f"exit code {exit_code}"
    if exit_code == _NO_CONNECTION:
        return f"no connection: {said}"
    if exit_code == _NO_PROGRAM:
        return f"{program} is not there: {said}; install it, or give its path with --remote"
    if exit_code in _ANSWERS:
        return "the answer is not understood: does it have another version of fm-consumer?"
    return said
