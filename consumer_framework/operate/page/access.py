# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides if a request comes from the page, and from the person who started the server."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hmac import compare_digest

# The names of this machine for itself. A name that an attacker's DNS server points to 127.0.0.1 is
# none of them (DNS rebinding). The port may be any: ssh forwards another one.
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Bytes of randomness in the address and in the cookie.
_STRENGTH = 32


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a request is refused.

    Attributes:
        status: The status of HTTP.
        title: A few words.
        detail: A sentence with the cure.
    """

    status: int
    title: str
    detail: str


_NO_COOKIE = Refusal(
    401,
    "This browser is not let in",
    "Open the address that fm-consumer web printed. It works once; "
    "for a new address, start fm-consumer web again.",
)
_WRONG_HOST = Refusal(
    403,
    "Another host",
    "Open the page as localhost, 127.0.0.1 or [::1]; use ssh -L from elsewhere.",
)
_WRONG_ORIGIN = Refusal(403, "Another origin", "Only the page itself may send requests.")


class Access:
    """The keys of one server: an address that works once, and a cookie."""

    def __init__(self) -> None:
        self._token: str | None = secrets.token_urlsafe(_STRENGTH)
        self._secret = secrets.token_urlsafe(_STRENGTH)
        # Browsers send a cookie to each port of a host, so each server has a name of its own.
        self._name = f"fm-consumer-{secrets.token_hex(4)}"

    @property
    def token(self) -> str:
        """The secret part of the address; "" once it is used."""
        return self._token or ""

    def enter(self, token: str) -> str | None:
        """Return the header ``Set-Cookie`` for a browser with the address; None for a wrong one."""
        if not self._token or not compare_digest(token.encode(), self._token.encode()):
            return None
        self._token = None
        return f"{self._name}={self._secret}; Path=/; HttpOnly; SameSite=Strict"

    def refusal(
        self, method: str, host: str, origin: str | None, cookies: str | None
    ) -> Refusal | None:
        """Return the reason to refuse a request, or None.

        Args:
            method: Its method; all but GET and HEAD need an origin.
            host: Its header ``Host``.
            origin: Its header ``Origin``; None without one.
            cookies: Its header ``Cookie``; None without one.
        """
        refused = self.foreign(method, host, origin)
        return refused or (None if self._knows(cookies or "") else _NO_COOKIE)

    @staticmethod
    def foreign(method: str, host: str, origin: str | None) -> Refusal | None:
        """Return the reason to refuse a request whose host or origin is another; None otherwise."""
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if (name or port) not in _OWN_NAMES:
            return _WRONG_HOST
        if origin is None and method in {"GET", "HEAD"}:
            return None
        return None if origin == f"http://{host}" else _WRONG_ORIGIN

    def _knows(self, cookies: str) -> bool:
        # http.cookies gives up at the first cookie of another server that it cannot read.
        pairs = (part.strip().partition("=") for part in cookies.split(";"))
        secret = self._secret.encode()
        return any(
            name == self._name and compare_digest(value.encode(), secret)
            for name, _, value in pairs
        )
