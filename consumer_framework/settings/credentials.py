# SPDX-License-Identifier: GPL-2.0-or-later
"""Find ``credential:NAME`` in a configuration, and put the secret in its place.

Credentials are systemd's (systemd.exec(5), "Credentials"): files that systemd gives to one service.
An adapter knows where the files are (:class:`Credentials`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote, unquote

from consumer_framework.core.errors import Problem

from .problems import toml_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from .problems import Location

    _Value = TypeVar("_Value")

SCHEME = "credential:"
# systemd.exec(5), "SetCredential=": a file name of ASCII characters without ":" and controls.
_NAME = re.compile(r"[ -.0-9;-~]{1,255}", re.ASCII)
# The password of a URL. One that is itself "credential:..." is written with %3A.
_IN_URL = re.compile(
    r"([a-z][a-z0-9+.-]*://[^/?#@:]*:)credential:([^/?#@]*)(@.*)", re.DOTALL | re.IGNORECASE
)
_FILES = {("tls", "ca_cert"), ("tls", "certfile"), ("tls", "keyfile")}
_URL = ("amqp_url",)
_BROKERS = ("consumer_config", "framework", "brokers")
_DATABASE = ("consumer_config", "framework", "outbox", "database")
_ENDPOINTS = ("consumer_config", "framework", "outbox", "endpoints")
# Placeholders for a URL, and for a password in one, that this process cannot see.
_ANY_URL = "amqps://"
_ANY_DATABASE = "postgresql://"
_ANY_PASSWORD = "unknown"  # noqa: S105 -- it is none


class UnavailableError(Exception):
    """A credential is not available.

    Args:
        what: The problem, as the rest of a line that names the credential.
        cure: The remedy.
        elsewhere: The service itself may have the credential; this process cannot see it.
    """

    def __init__(self, what: str, cure: str, *, elsewhere: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure
        self.elsewhere = elsewhere


class Credentials(Protocol):
    """A source of credentials. Every method may raise :class:`UnavailableError`."""

    def text(self, name: str) -> str:
        """Return the text of the credential without one newline at its end."""
        ...

    def file(self, name: str) -> str:
        """Return the path of a file that contains the credential."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """One ``credential:NAME``.

    Attributes:
        path: The TOML path of the string.
        name: The credential's name.
    """

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Substituted:
    """A configuration with credentials in the place of their names.

    Attributes:
        document: The configuration.
        problems: The credentials that are not available.
        unseen: The credentials that only the service itself can read. The document has a
            placeholder for each.
    """

    document: dict[str, Any]
    problems: tuple[Problem, ...] = ()
    unseen: tuple[Problem, ...] = ()

    @property
    def absent(self) -> frozenset[str]:
        """The TOML paths of the credentials that this process does not have."""
        return frozenset(problem.path for problem in (*self.problems, *self.unseen))


def references(document: dict[str, Any]) -> tuple[Reference, ...]:
    """Return every credential that *document* names."""
    found = []

    def note(location: Location, text: str) -> str:
        split = _split(location, text)
        if split is not None:
            found.append(Reference(toml_path("", location), split[1]))
        return text

    _mapped(document, (), note)
    return tuple(found)


def substitute(document: dict[str, Any], credentials: Credentials) -> Substituted:
    """Put credentials in the place of their names.

    A string that is ``credential:NAME`` becomes the credential's text; of ``[tls]``, the name of
    its file. A URL may have it for the password alone: ``amqps://USER:credential:NAME@HOST``. The
    keys with URLs are ``amqp_url``, ``brokers``, and ``database`` and ``endpoints`` of the outbox.
    The text of a credential is never searched for names of other credentials.

    Args:
        document: A configuration as it is written.
        credentials: The source of the credentials.
    """
    problems: list[Problem] = []
    unseen: list[Problem] = []

    def replace(location: Location, text: str) -> str:
        split = _split(location, text)
        if split is None:
            return text
        before, name, after = split
        path = toml_path("", location)
        try:
            value = _value(location, name, credentials)
        except UnavailableError as error:
            what = f'the credential "{name}" {error.what}'
            (unseen if error.elsewhere else problems).append(Problem(path, what, error.cure))
            return _stand_in(location, split, text)
        return f"{before}{quote(value, safe='')}{after}" if before else value

    result = _mapped(document, (), replace)
    return Substituted(result, tuple(problems), tuple(unseen))


def _split(location: Location, text: str) -> tuple[str, str, str] | None:
    """Return the text before a credential's name, the name, and the text after it."""
    if text.startswith(SCHEME):
        return "", text.removeprefix(SCHEME), ""
    in_url = _IN_URL.fullmatch(text) if _is_url(location) else None
    return (in_url[1], unquote(in_url[2]), in_url[3]) if in_url else None


def _is_url(location: Location) -> bool:
    return location in {_URL, _DATABASE} or location[:-1] in {_BROKERS, _ENDPOINTS}


def _value(location: Location, name: str, credentials: Credentials) -> str:
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        what = "can have no such name"
        raise UnavailableError(what, 'use 1 to 255 ASCII characters without "/" and ":"')
    return credentials.file(name) if location in _FILES else credentials.text(name)


def _stand_in(location: Location, split: tuple[str, str, str], text: str) -> str:
    """Return a placeholder with which the rest of a configuration can be checked."""
    if not _is_url(location):
        return text
    before, _, after = split
    if before:
        return f"{before}{_ANY_PASSWORD}{after}"
    return _ANY_DATABASE if location == _DATABASE else _ANY_URL


def _mapped(
    value: _Value, location: Location, change: Callable[[Location, str], str]
) -> _Value | Any:
    """Return *value* with *change* applied to every string in it."""
    match value:
        case str():
            return change(location, value)
        case dict():
            return {key: _mapped(inner, (*location, key), change) for key, inner in value.items()}
        case list():
            return [_mapped(inner, (*location, i), change) for i, inner in enumerate(value)]
    return value
