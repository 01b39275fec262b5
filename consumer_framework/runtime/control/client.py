# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends operators' requests to a running instance, through its control socket."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    RemoteDisconnected,
)
from typing import TYPE_CHECKING

from consumer_framework.adapters.store.files import is_locked_elsewhere
from consumer_framework.core.errors import FrameworkError
from consumer_framework.runtime.state_files import (
    CONTROL,
    OPERATORS,
    SYSTEM_RUNTIME,
    SYSTEM_STATE,
    control_socket,
    is_of_relay,
    users_directory,
)

from .operators import LOGIN_HEADER, login_of_this_process
from .routes import PROBLEM, STREAM, product_version, write_call
from .schema import Done, Ping, ProtocolError, decode_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from .schema import AnswerT, Request

# Seconds. The event loop of an instance answers at once, whatever its handlers do.
ANSWER_TIMEOUT = 10.0
# The same for somebody who looks at all instances, and waits for one that hangs.
LOOK_TIMEOUT = 2.0
# Seconds that a request waits for an instance that is starting, or for another command.
PATIENCE = 30.0
_POLL_INTERVAL = 0.1
# Bytes of a socket's name, without the NUL at its end (unix(7)).
_LONGEST_NAME = 107
# Bytes; far more than an answer or a page has.
_LONGEST_ANSWER = 16 << 20


class ControlError(FrameworkError):
    """The running instance did not carry a request out, or did not confirm it.

    Args:
        message: One line that says what to do.
    """

    exit_code = 1


class RefusedError(ControlError):
    """The running instance refused a request, or failed before its first answer.

    Args:
        message: One line that says why.
        status: The code of its response.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ClosedError(ControlError):
    """This user may not connect to a socket."""


class Client:
    """Asks a running instance. Made by :func:`connected`.

    Each request has a connection of its own: hours may pass between two of them, in an editor.

    Args:
        path: The socket's name.
        connection: For the first request; it is the client's from now on.
        timeout: Seconds for each answer; None for :data:`ANSWER_TIMEOUT`.
    """

    def __init__(self, path: Path, connection: socket.socket, timeout: float | None = None) -> None:
        self._path = path
        self._who = _who(path)
        self._first: socket.socket | None = connection
        self._timeout: float | None = timeout or ANSWER_TIMEOUT

    def ask(
        self,
        request: Request[AnswerT],
        otherwise: str = "what was not told of is quarantined again when it starts",
    ) -> Iterator[AnswerT]:
        """Send one request, and yield its answers as they come.

        Args:
            request: The request.
            otherwise: The consequence, for the error, if the instance stops meanwhile.

        Raises:
            ControlError: The request was refused or failed, or the instance went away meanwhile.
        """
        try:
            yield from self._answers(request)
        except TimeoutError:
            raise _silent(self._path) from None
        except BadStatusLine as error:
            is_gone = isinstance(error, RemoteDisconnected)
            raise self._gone(otherwise) if is_gone else self._older() from None
        except (OSError, EOFError, HTTPException):
            raise self._gone(otherwise) from None
        except ProtocolError as error:
            what = f"{self._who} may run another version; restart it"
            raise ControlError(f"{self._path}: {what}: {error}") from None

    def page(self, path: str) -> str:
        """Return the text of a page, such as ``/metrics``.

        Raises:
            ControlError: There is none, or the instance went away meanwhile.
        """
        connection = HTTPConnection("localhost")
        try:
            connection.sock = self._connection()
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise self._refused(response)
            return response.read(_LONGEST_ANSWER).decode(errors="replace")
        except TimeoutError:
            raise _silent(self._path) from None
        except (OSError, HTTPException):
            raise self._gone("the page is not complete") from None
        finally:
            connection.close()

    def wait_long(self) -> None:
        """Wait for answers without a limit: handlers run meanwhile."""
        self._timeout = None

    def close(self) -> None:
        """Close the connection."""
        if self._first is not None:
            self._first.close()

    def _answers(self, request: Request[AnswerT]) -> Iterator[AnswerT]:
        connection = HTTPConnection("localhost")
        connection.sock = self._connection()
        try:
            response = self._response(connection, request)
            content_type = (response.getheader("Content-Type") or "").partition(";")[0]
            if content_type == STREAM:
                yield from self._stream(request, response)
            elif content_type == PROBLEM:
                raise self._refused(response)
            else:
                yield self._decoded(request, response.read(_LONGEST_ANSWER))
        finally:
            connection.close()

    def _connection(self) -> socket.socket:
        connection, self._first = self._first, None
        if connection is None:
            connection = _open(self._path)
        connection.settimeout(self._timeout)
        return connection

    @staticmethod
    def _response(connection: HTTPConnection, request: Request[AnswerT]) -> HTTPResponse:
        call = write_call(request)
        # One that refuses a long body does not read it to its end.
        with suppress(BrokenPipeError):
            connection.request(call.method, call.target, call.body or None, _headers())
        return connection.getresponse()

    def _stream(self, request: Request[AnswerT], response: HTTPResponse) -> Iterator[AnswerT]:
        while not isinstance(answer := decode_answer(request, self._line(response)), Done):
            yield answer
        if answer.error is not None:
            raise ControlError(f"{self._path}: {self._who} says: {answer.error}")

    @staticmethod
    def _decoded(request: Request[AnswerT], text: bytes) -> AnswerT:
        answer = decode_answer(request, text)
        if isinstance(answer, Done):
            raise ProtocolError("an end without an answer")
        return answer

    @staticmethod
    def _line(response: HTTPResponse) -> bytes:
        line = response.readline(_LONGEST_ANSWER)
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def _refused(self, response: HTTPResponse) -> RefusedError:
        try:
            detail = str(json.loads(response.read(_LONGEST_ANSWER))["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"HTTP status {response.status}"
        what = f"{self._path}: {self._who} says: {' '.join(detail.split())}"
        return RefusedError(what, response.status)

    def _gone(self, otherwise: str) -> ControlError:
        return ControlError(f"{self._path}: {self._who} stopped before it was done; {otherwise}")

    def _older(self) -> ControlError:
        ours = f"consumer_framework {product_version()}, and its control socket speaks HTTP"
        what = f"{self._who} runs another version than this command; this is {ours}"
        return ControlError(f"{self._path}: {what}; restart it")


@contextmanager
def connected(
    directory: Path, instance: str, timeout: float | None = None
) -> Iterator[Client | None]:
    """Connect to the instance whose state is in *directory*; None where it does not run.

    Args:
        directory: Where the instance keeps its state.
        instance: Its name.
        timeout: Seconds for each answer; None for :data:`ANSWER_TIMEOUT`.

    Raises:
        ControlError: It runs, but this user may not send it requests, or it does not answer.
    """
    with connected_to(sockets(directory, instance), timeout) as client:
        yield client


@contextmanager
def connected_to(paths: Sequence[Path], timeout: float | None = None) -> Iterator[Client | None]:
    """Connect to the first of the sockets *paths* on which a process listens; None without one.

    Raises:
        ControlError: It runs, but this user may not send it requests, or it does not answer.
    """
    client = _first_of(paths, timeout)
    try:
        if client is not None:
            list(client.ask(Ping()))
        yield client
    finally:
        if client is not None:
            client.close()


@contextmanager
def reached(
    directory: Path,
    instance: str,
    tell: Callable[[str], None] = lambda _line: None,
    patience: float = PATIENCE,
) -> Iterator[Client | None]:
    """Connect as :func:`connected` does, and wait first for a process that has the store.

    An instance that is starting has its store, and cannot be asked yet; so has another command.

    Args:
        directory: Where the instance keeps its state.
        instance: Its name.
        tell: Called once with one line, if the command has to wait.
        patience: Wait for so many seconds at most.
    """
    end = time.monotonic() + patience
    is_told = False
    while True:
        with connected(directory, instance) as running:
            is_taken = running is None and is_locked_elsewhere(directory)
            if not is_taken or time.monotonic() >= end:
                yield running
                return
        if not is_told:
            tell(f"waiting for another process that uses {directory}")
            is_told = True
        time.sleep(_POLL_INTERVAL)


def sockets(directory: Path, instance: str) -> list[Path]:
    """Return the sockets on which the instance may listen, the likeliest first.

    Only those of its own service: a request must never reach another instance.
    """
    found = [directory / CONTROL]
    if directory.resolve() == (SYSTEM_STATE / instance).resolve():
        runtime = SYSTEM_RUNTIME / instance
        found[:0] = [runtime / CONTROL, runtime / OPERATORS / CONTROL]
    if os.environ.get("STATE_DIRECTORY", "").partition(":")[0] == str(directory):
        # This command runs with the environment of a service, and $RUNTIME_DIRECTORY is of it.
        found.insert(0, control_socket(directory))
    return list(dict.fromkeys(found))


def sockets_for_operators(directory: Path, instance: str) -> list[Path]:
    """Return :func:`sockets`, and those of the host's service *instance*.

    For requests about a running instance, whatever its store. The last ones count for a user who
    named no state directory, and runs no such instance.
    """
    found = sockets(directory, instance)
    if directory == users_directory(instance):
        runtime = SYSTEM_RUNTIME / instance
        # Without the group of operators there is only the second one, and it refuses this user.
        found += [runtime / OPERATORS / CONTROL, runtime / CONTROL]
    return list(dict.fromkeys(found))


def _first_of(paths: Sequence[Path], timeout: float | None) -> Client | None:
    """Connect to the first of *paths* that lets this user in."""
    closed: ControlError | None = None
    for path in paths:
        try:
            client = _connect(path, timeout)
        except ClosedError as error:
            # Another socket of the same process may be open for its operators.
            closed = closed or error
        else:
            if client is not None:
                return client
    if closed is not None:
        raise closed
    return None


def _connect(path: Path, timeout: float | None) -> Client | None:
    if len(os.fsencode(path)) > _LONGEST_NAME:
        return None
    try:
        return Client(path, _open(path, timeout), timeout)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        # There is none, or a killed instance left it behind.
        return None
    except (TimeoutError, BlockingIOError):
        # Its queue of connections is full: nobody takes them.
        raise _silent(path) from None
    except OSError as error:
        who = _who(path)
        cure = f"use sudo, or run this as the user that {who} runs as"
        reason = (error.strerror or str(error)).lower()
        kind = ClosedError if isinstance(error, PermissionError) else ControlError
        raise kind(f"{path}: {who} cannot be asked: {reason}; {cure}") from error


def _open(path: Path, timeout: float | None = None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout or ANSWER_TIMEOUT)
    try:
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _headers() -> dict[str, str]:
    # A header is ASCII, and so are logins (useradd(8)).
    login = login_of_this_process().encode("ascii", "replace").decode()
    return {"Content-Type": "application/json", LOGIN_HEADER: login}


def _who(path: Path) -> str:
    return "the relay" if is_of_relay(path) else "the instance"


def _silent(path: Path) -> ControlError:
    what = f"{_who(path)} runs, and does not answer"
    if not is_of_relay(path):
        what += ": its event loop is blocked"
    cure = "see its log (journalctl), and restart it if it hangs"
    return ControlError(f"{path}: {what}; {cure}")
