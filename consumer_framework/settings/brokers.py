# SPDX-License-Identifier: GPL-2.0-or-later
"""List the addresses of the brokers: that of ``amqp_url``, and those of ``brokers``.

All are members of one cluster, or addresses of one broker. So the user, the password, the virtual
host, the parameters of the URL and ``[tls]`` are those of ``amqp_url``, for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, StrictStr

from consumer_framework.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PORTS = {"amqp": 5672, "amqps": 5671}
# The host that pika connects to if a URL has none.
_LOCALHOST = "localhost"


@dataclass(frozen=True, slots=True)
class Address:
    """One broker.

    Attributes:
        name: A DNS name, or an IPv4 or IPv6 address.
        port: The TCP port.
    """

    name: str
    port: int

    def __str__(self) -> str:
        """``HOST:PORT``; an IPv6 address is in brackets."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


def _checked_brokers(text: str) -> str:
    try:
        parts = _split(text)
        is_right = bool(parts.hostname) and parts.port != 0 and parts.scheme in {"", *_PORTS}
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError('must be "HOST", "HOST:PORT" or an AMQP URL')
    return text


Broker = Annotated[StrictStr, AfterValidator(_checked_brokers)]


def addresses(amqp_url: str, brokers: Sequence[str] = ()) -> tuple[Address, ...]:
    """Return the addresses of the brokers in the order to try them, each one once.

    Args:
        amqp_url: A valid URL.
        brokers: ``HOST``, ``HOST:PORT`` or an AMQP URL each. The default port is that of
            ``amqp_url``, and in a URL that of its scheme.
    """
    first = urlsplit(amqp_url)
    port = first.port or _PORTS.get(first.scheme, _PORTS["amqp"])
    found = [Address(unquote(first.hostname or _LOCALHOST), port)]
    others = map(_split, brokers)
    found += [Address(p.hostname or "", p.port or _PORTS.get(p.scheme, port)) for p in others]
    return tuple(dict.fromkeys(found))


def broker_problems(amqp_url: str, brokers: Sequence[str], path: str) -> Iterator[Problem]:
    """Find the entries that contradict ``amqp_url``. No problem repeats their text.

    Args:
        amqp_url: A valid URL.
        brokers: As for :func:`addresses`.
        path: The TOML path of the list.
    """
    first = urlsplit(amqp_url)
    for index, parts in enumerate(map(_split, brokers)):
        if parts.scheme and parts.scheme != first.scheme:
            what = f"is {parts.scheme}:// where amqp_url is {first.scheme}://"
            yield Problem(f"{path}[{index}]", what, "use the same for all brokers")
        elif _differs(parts, first):
            what = "has another user, password or virtual host than amqp_url"
            cure = "write HOST:PORT; all brokers are connected to with those of amqp_url"
            yield Problem(f"{path}[{index}]", what, cure)


def _differs(parts: SplitResult, first: SplitResult) -> bool:
    has_login = "@" in parts.netloc
    other_login = has_login and _login(parts) != _login(first)
    has_vhost = parts.path not in {"", "/"}
    return other_login or (has_vhost and unquote(parts.path[1:]) != unquote(first.path[1:]))


def _login(parts: SplitResult) -> tuple[str, str]:
    return unquote(parts.username or ""), unquote(parts.password or "")


def _split(text: str) -> SplitResult:
    if "://" in text:
        return urlsplit(text)
    # An IPv6 address contains colons; only one in brackets may have a port.
    bare = text.count(":") > 1 and not text.startswith("[")
    return urlsplit(f"//[{text}]" if bare else f"//{text}")
