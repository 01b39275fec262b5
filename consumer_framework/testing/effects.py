# SPDX-License-Identifier: GPL-2.0-or-later
"""Sees the effects of a handler on the outside world, as far as they go through known functions.

:data:`FUNCTIONS` has the functions of HTTP clients and of mail; :mod:`.sql_effects` sees the
commits of databases. A test may name further functions. :class:`EffectWatch` replaces all of them
while its block runs, and calls a :class:`Witness` before and after each effect.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import linecache
import pkgutil
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from twisted.internet import defer

from consumer_framework.core.attempt import is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    Describe = Callable[..., str | None]

T = TypeVar("T")

# HTTP methods that may be sent twice without harm (RFC 9110, section 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# Characters of a statement or a URL in a report.
_LONGEST = 120

# The modules that call handlers and tasks; frames above them are not the handler's.
_CALLERS = frozenset(
    {"consumer_framework.adapters.executor.run", "consumer_framework.testing.virtual_time"}
)

# True inside an effect: a client that calls another client has one effect.
_is_inside: ContextVar[bool] = ContextVar("is_inside_effect", default=False)


class Place(NamedTuple):
    """A line of the author's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        file = Path(self.file)
        shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        return f"{shown}:{self.line}, in {self.function}: {source}"


class Effect(NamedTuple):
    """One effect of a handler on the outside world.

    Attributes:
        kind: ``"HTTP"``, ``"SQL"``, ``"mail"``, ``"publish"``, ``"step"`` or ``"call"``.
        what: Its words: a method and a URL, a statement, the name of a function.
        message: The place of its message among those of the test, from 0; None in a batch, whose
            messages a handler may mix.
        places: The lines of the author's code that led to it, the innermost first.
        in_step: Whether it belongs to a step of :meth:`.Consumer.once`.
    """

    kind: str
    what: str
    message: int | None
    places: tuple[Place, ...]
    in_step: bool

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for the same effect in two runs of a handler, whose words may differ."""
        return self.message, self.kind, self.places

    def __str__(self) -> str:
        return f"{self.kind} {self.what}" if self.kind in {"HTTP", "SQL"} else self.what


class Witness(Protocol):
    """Is told of effects, and may end the process by an exception."""

    def before(self, kind: str, what: str) -> Effect | None:
        """Return the effect that is about to happen; None for one that does not count."""

    def after(self, effect: Effect) -> None:
        """Take note of an effect that happened."""


class Function(NamedTuple):
    """A function that has an effect.

    Attributes:
        module: Its module; it is watched once something has imported that.
        name: Its name there.
        kind: The kind of the effect.
        describe: Returns the effect of a call in words; None for a call without an effect.
    """

    module: str
    name: str
    kind: str
    describe: Describe


def _request(method: object, url: object) -> str | None:
    verb, target = _text(method).upper(), _text(url)
    return None if verb in IDEMPOTENT else clipped(f"{verb} {target}")


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _prepared(_client: Any, request: Any, *_: Any, **__: Any) -> str | None:
    return _request(request.method, request.url)


def _called(_client: Any, method: Any, url: Any, *_: Any, **__: Any) -> str | None:
    return _request(method, url)


def _opened(_opener: Any, url: Any, data: Any = None, *_: Any, **__: Any) -> str | None:
    if isinstance(url, str):
        return _request("GET" if data is None else "POST", url)
    return _request("POST" if data is not None else url.get_method(), url.full_url)


def _pooled(pool: Any, method: str, url: str, *_: Any, **__: Any) -> str | None:
    return _request(method, f"{pool.scheme}://{pool.host}:{pool.port}{url}")


def _connected(connection: Any, method: str, url: str, *_: Any, **__: Any) -> str | None:
    return _request(method, f"http://{connection.host}:{connection.port}{url}")


def _mailed(_client: Any, _sender: Any, to: Any, *_: Any, **__: Any) -> str:
    receivers = to if isinstance(to, str) else ", ".join(to)
    return clipped(f"mail to {receivers}")


FUNCTIONS = (
    Function("requests", "Session.send", "HTTP", _prepared),
    Function("urllib.request", "OpenerDirector.open", "HTTP", _opened),
    Function("urllib3.connectionpool", "HTTPConnectionPool.urlopen", "HTTP", _pooled),
    Function("http.client", "HTTPConnection.request", "HTTP", _connected),
    Function("httpx", "Client.send", "HTTP", _prepared),
    Function("httpx", "AsyncClient.send", "HTTP", _prepared),
    Function("treq.client", "HTTPClient.request", "HTTP", _called),
    Function("twisted.web.client", "Agent.request", "HTTP", _called),
    Function("smtplib", "SMTP.sendmail", "mail", _mailed),
)


def named_functions(names: Iterable[str]) -> tuple[Function, ...]:
    """Return the functions that a test names, as ``"module:Class.method"``.

    Raises:
        ValueError: There is no such function.
    """
    found = []
    for name in names:
        module, colon, inner = name.partition(":")
        if not colon:
            module, _, inner = name.rpartition(".")
        try:
            importlib.import_module(module)
            is_function = callable(pkgutil.resolve_name(f"{module}:{inner}"))
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"watch: {name!r}: {error}; write module:Class.method") from error
        if not is_function:
            raise ValueError(f"watch: {name!r} is no function")
        found.append(Function(module, inner, "call", _named(inner)))
    return tuple(found)


def _named(name: str) -> Describe:
    return lambda *_args, **_kwargs: f"{name}()"


class EffectWatch:
    """Tells a witness of each effect.

    Args:
        witness: Is told.
        functions: The functions that have effects.
    """

    def __init__(self, witness: Witness, functions: Iterable[Function]) -> None:
        self._witness = witness
        self._functions = tuple(functions)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch while the block runs."""
        with contextlib.ExitStack() as stack:
            for function in self._functions:
                if function.module in sys.modules:
                    stack.enter_context(self._replaced(function))
            yield

    def missing(self) -> frozenset[str]:
        """Return the modules whose functions are not watched, since nothing has imported them."""
        return frozenset(f.module for f in self._functions if f.module not in sys.modules)

    @contextlib.contextmanager
    def _replaced(self, function: Function) -> Iterator[None]:
        owner_name, _, name = function.name.rpartition(".")
        owner: Any = sys.modules[function.module]
        if owner_name:
            owner = pkgutil.resolve_name(f"{function.module}:{owner_name}")
        raw = inspect.getattr_static(owner, name)
        is_bound = isinstance(raw, staticmethod | classmethod)
        original = getattr(owner, name)
        watched = self._watched(function, original)
        is_inherited = inspect.isclass(owner) and name not in vars(owner)
        setattr(owner, name, staticmethod(watched) if is_bound else watched)
        try:
            yield
        finally:
            if is_inherited:
                delattr(owner, name)
            else:
                setattr(owner, name, raw)

    def _watched(self, function: Function, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            what = function.describe(*args, **kwargs)
            if what is None:
                return original(*args, **kwargs)
            return self.around(function.kind, what, lambda: original(*args, **kwargs))

        return call

    def around(
        self,
        kind: str,
        what: str,
        call: Callable[[], Any],
        happened: Callable[[], bool] = lambda: True,
    ) -> Any:
        """Have an effect, and tell the witness of it before and after.

        Args:
            kind: The kind of the effect.
            what: The words for it.
            call: Has the effect. It may return an awaitable, which has it then.
            happened: Tells afterwards whether there was an effect.
        """
        effect = None if _is_inside.get() else self._witness.before(kind, what)
        if effect is None:
            return call()
        with _inside():
            returned = call()
        if isinstance(returned, defer.Deferred):
            return returned.addCallback(functools.partial(self._told, effect))
        if inspect.isawaitable(returned):
            return self._later(effect, returned)
        return self._told(effect, returned) if happened() else returned

    async def _later(self, effect: Effect, awaitable: Any) -> Any:
        with _inside():
            returned = await awaitable
        return self._told(effect, returned)

    def _told(self, effect: Effect, returned: T) -> T:
        try:
            self._witness.after(effect)
        except BaseException:
            if effect.kind == "HTTP":
                # The end of a process closes its connections.
                with contextlib.suppress(Exception):
                    returned.close()  # type: ignore[attr-defined]
            raise
        return returned


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    token = _is_inside.set(True)
    try:
        yield
    finally:
        _is_inside.reset(token)


def clipped(text: str) -> str:
    """Return *text* as one line that is not too long for a report."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def places_of(frame: FrameType | None, package: str) -> tuple[Place, ...]:
    """Return the lines of the author's code that are being executed, the innermost first.

    Args:
        frame: The innermost frame.
        package: A package that is the author's own, wherever it is installed.
    """
    places, foreign = [], []
    while frame is not None:
        code, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        if module in _CALLERS:
            break
        place = Place(code.co_filename, frame.f_lineno, code.co_name)
        if is_own(code.co_filename, module) or f"{module}.".startswith(f"{package}."):
            places.append(place)
        elif not module.startswith("consumer_framework."):
            foreign.append(place)
        frame = frame.f_back
    return tuple(places or foreign[:1])
