# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP server of the page."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.server import Request as TwistedRequest
from zope.interface import implementer  # type: ignore[import-untyped]

from .access import Access, Refusal
from .calls import CallError, check_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from .calls import Calls
    from .programs import Programs

    # Most methods of Twisted's class have no types.
    Request: TypeAlias = Any

_log = logging.getLogger(__name__)

# Where the page is, as in Cockpit: it asks for ../base1/cockpit.js.
PAGE = "/fm-consumers/"
LOGIN = "/login"
_RUN = f"{PAGE}run"
# Bytes of a request's body. The longest has the edited body of a message.
LONGEST_BODY = 16 << 20
# Seconds that a connection may be silent.
_PATIENCE = 60
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; font-src 'self' data:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PageSite(Site):
    """Serves the files of the page, and runs its calls.

    Args:
        directory: The files of the page.
        calls: The commands that it may run.
        programs: Runs them.
        access: Lets browsers in.
        clock: Returns monotonic seconds.

    Attributes:
        used_at: The time of the latest request that was let in.
    """

    def __init__(
        self,
        directory: Path,
        calls: Calls,
        programs: Programs,
        access: Access,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            _Root(self, _files(directory)), requestFactory=_LimitedRequest, timeout=_PATIENCE
        )
        self.displayTracebacks = False
        self.calls = calls
        self.programs = programs
        self.access = access
        self._clock = clock
        self.used_at = clock()

    def touch(self) -> None:
        """Note that a browser uses the page now."""
        self.used_at = self._clock()

    def log(self, request: Request) -> None:
        """Log no request: the address has a secret."""


def _files(directory: Path) -> dict[str, tuple[Path, str]]:
    """Return the files of the page, and their types, by the paths of their addresses."""
    found = {
        PAGE + path.relative_to(directory).as_posix(): (path, _TYPES[path.suffix])
        for path in directory.rglob("*")
        if path.suffix in _TYPES and path.is_file()
    }
    return {**found, PAGE: found[f"{PAGE}index.html"]}


class _LimitedRequest(TwistedRequest):
    """Keeps no more of a body than the longest may have.

    Attributes:
        size: The bytes of the body that came.
    """

    size = 0

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802 -- Twisted's name
        self.size += len(data)
        if self.size <= LONGEST_BODY:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]


class _Root(Resource):
    isLeaf = True  # noqa: N815 -- Twisted's name

    def __init__(self, site: PageSite, files: Mapping[str, tuple[Path, str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._site = site
        self._files = files
        self._tasks: set[asyncio.Task[None]] = set()

    def render(self, request: Request) -> bytes | int:
        for name, value in _HEADERS.items():
            request.setHeader(name, value)
        method, path = request.method.decode("latin-1"), request.path.decode("latin-1")
        if path == LOGIN and method == "GET":
            return self._login(request)
        access = self._site.access
        origin = _header(request, "Origin")
        host = _header(request, "Host") or ""
        refused = access.refusal(method, host, origin, _header(request, "Cookie"))
        if refused:
            return _refuse(request, refused)
        self._site.touch()
        if method == "POST" and path == _RUN:
            return self._run(request)
        if method in {"GET", "HEAD"}:
            return self._file(request, path)
        return _refuse(request, Refusal(405, "No such method", f"{method} is not for {path}."))

    def _login(self, request: Request) -> bytes:
        host, origin = _header(request, "Host") or "", _header(request, "Origin")
        if refused := Access.foreign("GET", host, origin):
            return _refuse(request, refused)
        token = request.args.get(b"token", [b""])[0].decode("latin-1")
        if cookie := self._site.access.enter(token):
            request.setHeader("Set-Cookie", cookie)
        # A browser that is in already opened the address again.
        elif refused := self._site.access.refusal("GET", host, None, _header(request, "Cookie")):
            return _refuse(request, refused)
        self._site.touch()
        return _redirect(request, PAGE)

    def _file(self, request: Request, path: str) -> bytes:
        if path == "/":
            return _redirect(request, PAGE)
        if path == "/base1/cockpit.js":
            # Without Cockpit, the page uses `run`.
            request.setHeader("Content-Type", _TYPES[".js"])
            return b""
        if path not in self._files:
            return _refuse(request, Refusal(404, "No such file", f"There is no {path}."))
        file, kind = self._files[path]
        request.setHeader("Content-Type", kind)
        return file.read_bytes()

    def _run(self, request: Request) -> bytes | int:
        if request.size > LONGEST_BODY:
            longest = f"A request has {LONGEST_BODY >> 20} MiB at most."
            return _refuse(request, Refusal(413, "Too long", longest))
        try:
            arguments, text = self._asked(request)
        except CallError as error:
            return _refuse(request, Refusal(400, "No such call", str(error)))
        request.setHeader("Content-Type", "application/x-ndjson")
        answer = _Answer(request)
        task = asyncio.get_running_loop().create_task(
            self._answer(request, answer, arguments, text)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        request.notifyFinish().addErrback(lambda _: task.cancel())
        return NOT_DONE_YET

    def _asked(self, request: Request) -> tuple[list[str], str | None]:
        if (_header(request, "Content-Type") or "").partition(";")[0] != "application/json":
            raise CallError("the body must be application/json")
        try:
            asked = json.loads(request.content.read())
        except (ValueError, RecursionError):
            raise CallError("the body is no JSON") from None
        match asked:
            case {"call": str(name), "values": dict(values), **more}:
                text = more.pop("input", None) or None
            case _:
                raise CallError("the body needs 'call' and 'values'")
        arguments = self._site.calls.arguments(name, values)
        if not self._site.calls.takes_input(name):
            return arguments, None
        if not isinstance(text, str):
            raise CallError(f"{name}: it needs an input")
        check_text("input", text)
        return arguments, text

    async def _answer(
        self, request: Request, answer: _Answer, arguments: list[str], text: str | None
    ) -> None:
        try:
            await self._site.programs.run(arguments, text, answer.tell)
        except Exception:  # noqa: BLE001 -- the browser is told
            # The answer has begun: without its end, the page knows that something is wrong.
            _log.exception("a command of the page failed: %s", arguments)
            request.channel.loseConnection()
            return
        self._site.touch()
        request.unregisterProducer()
        request.finish()


@implementer(IPushProducer)
class _Answer:
    """Lines of an answer, which wait while the browser reads slowly."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._may_write = asyncio.Event()
        self._may_write.set()
        request.registerProducer(self, streaming=True)
        # Sends the headers.
        request.write(b"")

    async def tell(self, line: Mapping[str, Any]) -> None:
        """Send one line."""
        self._request.write(json.dumps(line).encode() + b"\n")
        await self._may_write.wait()

    def pauseProducing(self) -> None:  # noqa: N802 -- Twisted's name
        """Wait."""
        self._may_write.clear()

    def resumeProducing(self) -> None:  # noqa: N802 -- Twisted's name
        """Go on."""
        self._may_write.set()

    def stopProducing(self) -> None:  # noqa: N802 -- Twisted's name
        """Do nothing: the task is cancelled."""


def _header(request: Request, name: str) -> str | None:
    # Twisted reads UTF-8, and cookies of other servers may be any bytes.
    value = request.getHeader(name.encode())
    return None if value is None else str(value, "latin-1")


def _redirect(request: Request, path: str) -> bytes:
    request.setResponseCode(303)
    request.setHeader("Location", path)
    return b""


def _refuse(request: Request, refusal: Refusal) -> bytes:
    request.setResponseCode(refusal.status)
    is_page = "text/html" in (_header(request, "Accept") or "")
    if is_page:
        request.setHeader("Content-Type", "text/plain; charset=utf-8")
        return f"{refusal.title}.\n\n{refusal.detail}\n".encode()
    request.setHeader("Content-Type", "application/problem+json")
    problem = {"status": refusal.status, "title": refusal.title, "detail": refusal.detail}
    return json.dumps(problem).encode()
