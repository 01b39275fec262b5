# SPDX-License-Identifier: GPL-2.0-or-later
"""The control API over HTTP: the table of its routes, and the way from a call to a typed request.

:data:`ROUTES` has the method, the path and the right of each request. The fields of a request come
from its path, its query and the JSON object of its body, in this order; ``GET`` has no body::

    → POST /v1/quarantine/replay   {"rows": [41]}
    ← 200 application/x-ndjson
      {"begun": 41}
      {"row": 41, "result": "succeeded", "reason": ""}
      {"done": true}

A request with one answer gets one JSON object. A request with a stream of answers gets one object a
line, and ``"done"`` at the end, with ``"error"`` where something went wrong after the first answer.
Every other failure is a :class:`Refusal`, with a problem document (:rfc:`9457`).

Besides, a process may have :class:`Page` objects, such as ``/metrics``: texts that are no answers.

Nothing here does I/O: the two servers and the client share it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_origin, get_type_hints
from urllib.parse import parse_qs, quote, unquote, urlencode

from consumer_framework.core.errors import FrameworkError, StoreError

from .schema import (
    VERSION,
    Causes,
    ConflictError,
    Done,
    Drop,
    Edit,
    Events,
    InFlight,
    ListSettings,
    LogLevel,
    Pause,
    Ping,
    Pong,
    ProtocolError,
    Quarantine,
    RelayStatus,
    Reload,
    Replay,
    Request,
    Resume,
    Show,
    ShowReplay,
    Stacks,
    Status,
    answers_of,
    checked,
    document_in,
    document_of,
    encode_answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

PREFIX = f"/v{VERSION}"
JSON = "application/json"
STREAM = "application/x-ndjson"
PROBLEM = "application/problem+json"
# Bytes of a body. The longest request has the text of a configuration file.
LONGEST_REQUEST = 1 << 20
# Connections at a time. Root and the user of the process may have more, so that operators do not
# keep them out, and the process keeps file descriptors for its work.
MOST_CLIENTS = 100
# The answer to a program that speaks the former protocol, in its own terms.
FORMER_PROTOCOL = Done(
    error="a newer consumer_framework runs here, and its socket speaks HTTP; update this command"
)


class Right(Enum):
    """The right that a request takes.

    Root and the user of the process have every right; other users, whom the mode of the socket
    lets in, may look and operate.
    """

    LOOK = "look"
    OPERATE = "operate"
    ADMINISTER = "administer"


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    Attributes:
        request: The type of the request.
        method: ``GET`` if it changes nothing, ``POST`` otherwise.
        path: Its path; ``{row}`` stands for the field *row* of the request.
        right: The right that it takes.
    """

    request: type[Request[Any]]
    method: str
    path: str
    right: Right

    @property
    def is_stream(self) -> bool:
        """Tell whether any number of answers may come."""
        return len(answers_of(self.request)) > 1


ROUTES: tuple[Route, ...] = (
    Route(Ping, "GET", PREFIX, Right.LOOK),
    Route(Status, "GET", f"{PREFIX}/status", Right.LOOK),
    Route(InFlight, "GET", f"{PREFIX}/in-flight", Right.LOOK),
    Route(Stacks, "GET", f"{PREFIX}/stacks", Right.LOOK),
    Route(Events, "GET", f"{PREFIX}/events", Right.LOOK),
    Route(ListSettings, "GET", f"{PREFIX}/settings", Right.LOOK),
    Route(RelayStatus, "GET", f"{PREFIX}/outbox", Right.LOOK),
    Route(Pause, "POST", f"{PREFIX}/pause", Right.OPERATE),
    Route(Resume, "POST", f"{PREFIX}/resume", Right.OPERATE),
    Route(Reload, "POST", f"{PREFIX}/reload", Right.OPERATE),
    Route(Quarantine, "GET", f"{PREFIX}/quarantine", Right.LOOK),
    Route(Causes, "GET", f"{PREFIX}/quarantine/causes", Right.LOOK),
    Route(ShowReplay, "GET", f"{PREFIX}/quarantine/replay", Right.LOOK),
    Route(Show, "GET", f"{PREFIX}/quarantine/{{row}}", Right.LOOK),
    Route(Replay, "POST", f"{PREFIX}/quarantine/replay", Right.OPERATE),
    Route(LogLevel, "POST", f"{PREFIX}/log-level", Right.ADMINISTER),
    Route(Drop, "POST", f"{PREFIX}/quarantine/drop", Right.ADMINISTER),
    Route(Edit, "POST", f"{PREFIX}/quarantine/edit", Right.ADMINISTER),
)
# The same, by the type of the request.
ROUTE_OF = {route.request: route for route in ROUTES}


@dataclass(frozen=True, slots=True)
class Page:
    """A text that is no answer to a typed request.

    Attributes:
        body: Its bytes.
        content_type: Their type.
        status: The code of the response.
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK


if TYPE_CHECKING:
    # By its path, a function that makes a page, and gets the header ``Accept``, "" for none. An
    # instance calls it on the event loop, so it has to be quick.
    Pages: TypeAlias = Mapping[str, Callable[[str], Page]]


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, read whole.

    Attributes:
        method: Such as ``GET``.
        target: The path, and the query after a question mark.
        body: Its bytes.
    """

    method: str
    target: str
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path, without a slash at its end."""
        return self.target.partition("?")[0].rstrip("/") or "/"


class Refusal(FrameworkError):  # noqa: N818 -- a response, and not always an error
    """A call is not carried out, or failed before its first answer.

    Args:
        status: The code of the response.
        detail: One line that says why, and the cure.
        headers: Further headers of the response.
    """

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.headers = headers

    @property
    def body(self) -> bytes:
        """The problem document of :rfc:`9457`."""
        title = self.status.phrase
        problem = {"type": "about:blank", "title": title, "status": self.status.value}
        return encode_answer(ProblemDetails(**problem, detail=str(self)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ProblemDetails:
    """The reason why a request was not carried out (:rfc:`9457`).

    Attributes:
        type: Always ``about:blank``: the status says all.
        title: The status in words.
        status: The status of the response.
        detail: The reason, with the cure.
    """

    type: str
    title: str
    status: int
    detail: str


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal that tells of *error*; log it if it is unexpected."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ConflictError):
        return Refusal(HTTPStatus.CONFLICT, str(error))
    if isinstance(error, ProtocolError):
        return Refusal(HTTPStatus.BAD_REQUEST, str(error))
    if isinstance(error, StoreError):
        # Such as a damaged row, and a disk that is full.
        is_lasting = error.lasting
        status = HTTPStatus.CONFLICT if is_lasting else HTTPStatus.SERVICE_UNAVAILABLE
        return Refusal(status, str(error))
    _log.error("a request on the control socket failed", exc_info=error)
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")


def end_of(error: Exception | None) -> bytes:
    """Return the last line of a stream, which *error* ended."""
    return encode_answer(Done(error=None if error is None else str(refusal_of(error)))) + b"\n"


def too_long() -> Refusal:
    """Return the refusal of a body that is longer than :data:`LONGEST_REQUEST`."""
    what = f"the body has more than {LONGEST_REQUEST} bytes"
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what, Connection="close")


def too_many() -> Refusal:
    """Return the refusal of a connection beyond :data:`MOST_CLIENTS`."""
    what = f"there are {MOST_CLIENTS} connections already; close some"
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, what, Connection="close")


# From a call to a request, and back.


def page_for(call: Call, pages: Pages) -> Callable[[str], Page] | None:
    """Return the function that makes the page of *call*; None if it is for no page.

    Raises:
        Refusal: It is, and its method is not ``GET``.
    """
    make = pages.get(call.path)
    if make is not None and call.method != "GET":
        raise _not_allowed(call, ["GET"])
    return make


def read_call(call: Call) -> tuple[Route, Request[Any]]:
    """Return the route of *call* and its request.

    Raises:
        Refusal: There is no such route.
        ProtocolError: The fields are not those of the request.
    """
    found = [
        (route, given) for route in ROUTES if (given := _match(route.path, call.path)) is not None
    ]
    if not found:
        raise Refusal(HTTPStatus.NOT_FOUND, _why_unknown(call.path))
    # A fixed path hides those with a field.
    fewest = min(len(given) for _, given in found)
    found = [(route, given) for route, given in found if len(given) == fewest]
    for route, given in found:
        if route.method == call.method:
            return route, _request(route, {**_arguments(route, call), **given})
    raise _not_allowed(call, sorted({route.method for route, _ in found}))


def write_call(request: Request[Any]) -> Call:
    """Return the call that :func:`read_call` reads as *request*."""
    route = ROUTE_OF[type(request)]
    document = document_of(request)
    path = "/".join(
        quote(str(document.pop(part[1:-1])), safe="") if part.startswith("{") else part
        for part in route.path.split("/")
    )
    if route.method != "GET":
        return Call(route.method, path, json.dumps(document).encode())
    given = {key: value for key, value in document.items() if value is not None}
    query = urlencode(given, doseq=True)
    return Call(route.method, f"{path}?{query}" if query else path)


def right_of(route: Route, request: Request[Any]) -> Right:
    """Return the right that *request* takes.

    A configuration names code that the instance runs: handing one over is not for operators.
    """
    hands_over = isinstance(request, Reload) and request.file is not None
    return Right.ADMINISTER if hands_over else route.right


def unanswered(request: Request[Any]) -> Refusal:
    """Return the refusal of a request that this process does not answer."""
    path = ROUTE_OF[type(request)].path
    return Refusal(HTTPStatus.NOT_FOUND, f"{path}: this process does not answer that")


@cache
def product_version() -> str:
    """Return the version of consumer_framework; "" if it is not installed as a package."""
    try:
        return version("consumer_framework")
    except PackageNotFoundError:
        return ""


def this_process(instance: str = "") -> Pong:
    """Return the answer to :class:`.Ping`."""
    return Pong(product=product_version(), instance=instance, pid=os.getpid())


def _match(template: str, path: str) -> dict[str, str] | None:
    """Return the fields that *path* names; None if *template* is not its."""
    wanted, given = template.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    found = {}
    for part, text in zip(wanted, given, strict=True):
        if part.startswith("{"):
            found[part[1:-1]] = unquote(text)
        elif part != text:
            return None
    return found


def _arguments(route: Route, call: Call) -> dict[str, Any]:
    """Return the fields of a request that the query and the body name."""
    query = call.target.partition("?")[2]
    try:
        named = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ProtocolError(f"the query {query!r} is none: {error}") from None
    several = _sequences(route)
    given: dict[str, Any] = {k: v if k in several else v[-1] for k, v in named.items()}
    if route.method != "GET" and call.body.strip():
        given.update(document_in(call.body))
    return given


@cache
def _sequences(route: Route) -> frozenset[str]:
    """Return the fields of a request that have several values."""
    hints = get_type_hints(route.request)
    return frozenset(name for name, hint in hints.items() if get_origin(hint) is tuple)


def _request(route: Route, given: dict[str, Any]) -> Request[Any]:
    where = f"{route.method} {route.path}"
    return cast("Request[Any]", checked((route.request,), given, where))


def _not_allowed(call: Call, methods: list[str]) -> Refusal:
    allowed = ", ".join(methods)
    what = f"{call.path} takes {allowed}, not {call.method}"
    return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, what, Allow=allowed)


def _why_unknown(path: str) -> str:
    first = "/".join(path.split("/")[:2])
    if re.fullmatch(r"/v\d{1,9}", first, re.ASCII) and first != PREFIX:
        ours = f"this process, consumer_framework {product_version()}, speaks version {VERSION}"
        return f"version {first[2:]} is not understood; {ours}"
    return f"there is no {path}"
