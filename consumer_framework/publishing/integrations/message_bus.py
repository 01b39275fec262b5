# SPDX-License-Identifier: GPL-2.0-or-later
"""Read ``MESSAGE_BUS``, the settings of messaging in the Product Definition Center (PDC).

====================== =============================================================================
key                    meaning
====================== =============================================================================
``MLP``                ``""``, ``"fedmsg"``, ``"kombu"``, ``"proton"``, ``"stomp"``, PDC's
                       ``"test"``, or the name of another messenger
``BACKEND``            instead of ``MLP``: the dotted path of a class as PDC has them
``URL``                the broker; a list, or a text with ``;``, for several
``EXCHANGE``           of kombu: its ``name`` counts; nothing is declared
``OPTIONS``            of kombu: arguments of :class:`kombu.Connection`, with ``ssl``
``HOST_AND_PORTS``     of stomp: pairs of host and port
``TOPIC``              of stomp: text before each topic
``CERT_FILE``          of proton, stomp and fedmsg: the certificate of this client
``KEY_FILE``           likewise: its key
====================== =============================================================================

A value ``""`` means that there is none, as in PDC's examples. These keys are new: ``CA_FILE``, the
certificates of authorities to check the broker with; ``USE_SSL``, ``USER`` and ``PASSWORD`` of
stomp; ``TOPIC`` of fedmsg.

**Addresses.** PDC's topics begin with a dot, ``.compose``, and PDC concatenated them. A message has
the same address here:

=========== ======================================= ==============================
MLP         address                                 example
=========== ======================================= ==============================
kombu       exchange, and the topic as it is        ``.compose``
proton      path of ``URL`` + topic                 ``com.redhat.pdc.compose``
stomp       ``/topic/`` + ``TOPIC`` + topic         ``/topic/pdc.compose``
fedmsg      prefix + topic without its dots         ``org.fedoraproject.dev.pdc.compose``
=========== ======================================= ==============================

**fedmsg** had all its settings in ``/etc/fedmsg.d``. They are read there, as fedmsg reads them:
``$FEDMSG_CONFIG`` may name another directory or file. Keys of ``MESSAGE_BUS`` come first.
"""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from consumer_framework.core import secrets
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.publishing.messengers import GROUP, Endpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["BACKEND", "MessageBus", "read"]

# The messenger that runs a class of PDC's form.
BACKEND = "pdc-backend"
_SETTING = "MESSAGE_BUS"
_FEDMSG_D = "/etc/fedmsg.d"
_KEYS = frozenset(
    """
    MLP BACKEND URL EXCHANGE OPTIONS HOST_AND_PORTS TOPIC CERT_FILE KEY_FILE CA_FILE USE_SSL USER
    PASSWORD
    """.split()  # noqa: SIM905 -- shorter
)
# The classes of PDC itself, which need not be installed.
_PDC_CLASSES = {
    "DummyMessenger": "",
    "FedmsgMessenger": "fedmsg",
    "KombuMessenger": "kombu",
    "ProtonMessenger": "proton",
    "StompMessenger": "stomp",
    "TestMessenger": "test",
}


@dataclass(frozen=True, slots=True)
class MessageBus:
    """The way to send that ``MESSAGE_BUS`` describes.

    Attributes:
        messenger: The name of the messenger.
        endpoints: Its brokers, and the files of certificates.
        options: Its options.
        exchange: The exchange of each message.
        prefix: Text before each topic.
        strips_dots: Take the dots at both ends of a topic away.
    """

    messenger: str
    endpoints: Endpoints
    options: Mapping[str, Any] = field(default_factory=dict)
    exchange: str = ""
    prefix: str = ""
    strips_dots: bool = False

    def address(self, topic: str) -> str:
        """Return the topic of a message as it is sent."""
        return self.prefix + (topic.strip(".") if self.strips_dots else topic)


def read(message_bus: Mapping[str, Any], module: str, timeout: float = 30.0) -> MessageBus:
    """Read the dictionary ``MESSAGE_BUS``.

    Args:
        message_bus: The dictionary. It is not changed.
        module: The name of the application, which fedmsg puts into each topic.
        timeout: Seconds to connect, and to wait for the answer to a batch.

    Raises:
        ConfigurationError: It has all problems.
    """
    given: Any = message_bus
    if not isinstance(given, Mapping):
        what = f"is no dictionary, but {type(given).__name__}"
        raise ConfigurationError(Problem("MESSAGE_BUS", what, 'write {"MLP": "kombu", ...}'))
    keys = _Keys(message_bus, module, timeout)
    name = keys.messenger()
    reader = _READERS.get(name, _other)
    found = reader(keys, name)
    if keys.problems:
        raise ConfigurationError(*keys.problems)
    return found


class _Keys:
    """The values of ``MESSAGE_BUS``, and the problems with them."""

    def __init__(self, message_bus: Mapping[str, Any], module: str, timeout: float) -> None:
        self._bus = message_bus
        self.module = module
        self.timeout = timeout
        self.problems: list[Problem] = []
        for key in sorted(message_bus.keys() - _KEYS):
            self.fault(str(key), "is not known", _nearest(str(key), _KEYS))

    def fault(self, key: str, what: str, cure: str) -> None:
        self.problems.append(Problem(f"{_SETTING}.{key}" if key else _SETTING, what, cure))

    def messenger(self) -> str:
        """Return the name of the messenger, as ``MLP`` has it."""
        path, name = self.text("BACKEND"), self.text("MLP")
        if path:
            module, _, cls = path.rpartition(".")
            is_own = module.partition(".")[0] == "pdc" and cls in _PDC_CLASSES
            return _PDC_CLASSES[cls] if is_own else BACKEND
        others = {point.name for point in entry_points(group=GROUP)} - {BACKEND}
        if name not in _READERS.keys() | others:
            known = sorted({*_READERS, *others} - {BACKEND})
            self.fault("MLP", f'there is no messenger "{name}"', _nearest(name, known))
        return name

    def text(self, key: str, *, needs: str = "") -> str:
        """Return a text; *needs* is the cure if there is none."""
        value = self._bus.get(key) or ""
        if not isinstance(value, str):
            self.fault(key, f"is no text, but {type(value).__name__}", "put it in quotes")
            return ""
        if needs and not value:
            self.fault(key, "is not set", needs)
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self._bus.get(key) or {}
        if not isinstance(value, dict):
            self.fault(key, f"is no dictionary, but {type(value).__name__}", "write {…}")
            return {}
        return dict(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._bus.get(key, default)
        if not isinstance(value, bool):
            self.fault(key, "is neither True nor False", "write True or False")
            return default
        return value

    def urls(self, cure: str) -> tuple[str, ...]:
        """Return the URLs, of which there is at least one without problems."""
        value = self._bus.get("URL") or ()
        found = value.split(";") if isinstance(value, str) else list(value)
        if not found or not all(isinstance(url, str) and url for url in found):
            self.fault("URL", "is no URL and no list of URLs", cure)
            return ()
        return tuple(found)

    def pairs(self) -> list[tuple[str, int]]:
        """Return the hosts and ports."""
        value = self._bus.get("HOST_AND_PORTS") or ()
        try:
            found = [(str(host), int(port)) for host, port in value]
        except (TypeError, ValueError):
            found = []
        if not found:
            what = "is no list of pairs of host and port"
            self.fault("HOST_AND_PORTS", what, 'write [("stomp.example.com", 61613)]')
        return found

    def has(self, key: str) -> bool:
        return bool(self._bus.get(key))

    def endpoints(self, urls: Iterable[str], **files: str) -> Endpoints:
        """Return *urls* with the certificates; their passwords are secrets from now on."""
        urls = tuple(urls)
        for url in urls:
            _hide_password(url)
        own = {"ca_cert": "CA_FILE", "certfile": "CERT_FILE", "keyfile": "KEY_FILE"}
        found: dict[str, Any] = {
            name: self.text(key) or files.get(name) for name, key in own.items()
        }
        return Endpoints(urls, **found, timeout=self.timeout)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    if close := difflib.get_close_matches(name, known, 1):
        return f'did you mean "{close[0]}"?'
    return "use one of " + ", ".join(f'"{one}"' for one in sorted(known))


def _hide_password(url: str) -> None:
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password and password != "guest":  # noqa: S105 -- everybody's, on its own machine
        for form in {password, unquote(password)}:
            secrets.hide(form, "the password of an endpoint")


def _dummy(keys: _Keys, _name: str) -> MessageBus:
    return MessageBus("dummy", keys.endpoints(()), prefix=keys.text("TOPIC"))


def _test(keys: _Keys, _name: str) -> MessageBus:
    return MessageBus("capture", keys.endpoints(()))


def _kombu(keys: _Keys, name: str) -> MessageBus:
    urls = keys.urls("write it as amqps://USER@HOST:5671/VHOST")
    options = keys.table("OPTIONS")
    if isinstance(given := options.get("ssl"), dict):
        options["ssl"] = {key: value for key, value in given.items() if value != ""}
    exchange = keys.table("EXCHANGE").get("name", "")
    if not isinstance(exchange, str):
        keys.fault("EXCHANGE.name", "is no text", "put it in quotes")
    return MessageBus(name, keys.endpoints(urls), options, str(exchange))


def _proton(keys: _Keys, name: str) -> MessageBus:
    cure = "write it as amqps://HOST:5671/ADDRESS"
    urls = keys.urls(cure)
    prefixes = {_split(url)[1] for url in urls}
    if len(prefixes) > 1:
        keys.fault("URL", "has endpoints with different addresses", "give all the same path")
    options = {"address": "{topic}", **keys.table("OPTIONS")}
    endpoints = keys.endpoints(_split(url)[0] for url in urls)
    return MessageBus(name, endpoints, options, prefix=min(prefixes, default=""))


def _split(url: str) -> tuple[str, str]:
    """Return *url* without its path, and the path without its first slash."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", path


def _stomp(keys: _Keys, name: str) -> MessageBus:
    has_certificate = bool(keys.text("CERT_FILE"))
    scheme = "stomps" if keys.flag("USE_SSL", default=has_certificate) else "stomp"
    user, password = (quote(keys.text(key), safe="") for key in ("USER", "PASSWORD"))
    login = f"{user}:{password}@" if user else ""
    urls = [f"{scheme}://{login}{_bracketed(host)}:{port}" for host, port in keys.pairs()]
    options = {"destination": "/topic/{topic}", **keys.table("OPTIONS")}
    return MessageBus(name, keys.endpoints(urls), options, prefix=keys.text("TOPIC"))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _backend(keys: _Keys, name: str) -> MessageBus:
    return MessageBus(name, keys.endpoints(()), {"backend": keys.text("BACKEND")})


def _other(keys: _Keys, name: str) -> MessageBus:
    """Read the settings of a messenger that PDC does not have."""
    urls = keys.urls("write it as SCHEME://HOST:PORT") if keys.has("URL") else ()
    exchange = keys.table("EXCHANGE").get("name", "")
    options = keys.table("OPTIONS")
    return MessageBus(name, keys.endpoints(urls), options, exchange, keys.text("TOPIC"))


# fedmsg


def _fedmsg(keys: _Keys, name: str) -> MessageBus:
    try:
        conf = _fedmsg_d()
    except ConfigurationError as error:
        keys.problems += error.located
        conf = {}
    urls = keys.urls("write it as tcp://HOST:PORT") if keys.has("URL") else _fedmsg_urls(keys, conf)
    files = _fedmsg_files(keys, conf)
    endpoints = keys.endpoints(urls, **files)
    has_files = bool(endpoints.certfile and endpoints.keyfile)
    options: dict[str, Any] = {"sign_messages": has_files}
    if conf.get("active"):
        options["active"] = True
    words = [conf.get("topic_prefix", "com.example"), conf.get("environment", "dev"), keys.module]
    prefix = keys.text("TOPIC") or ".".join(words)
    options |= keys.table("OPTIONS")
    return MessageBus(name, endpoints, options, prefix=f"{prefix.strip('.')}.", strips_dots=True)


def _fedmsg_d() -> dict[str, Any]:
    """Return the configuration of fedmsg: each file is Python, and sets ``config``."""
    place = Path(os.environ.get("FEDMSG_CONFIG") or _FEDMSG_D)
    files = sorted(place.glob("*.py")) if place.is_dir() else [place]
    found: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            continue
        variables: dict[str, Any] = {}
        try:
            exec(compile(file.read_text(), str(file), "exec"), variables)  # noqa: S102 -- as fedmsg does
            found = _merged(found, variables["config"])
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            cure = 'each file there is Python that sets "config" to a dictionary'
            raise ConfigurationError(Problem(str(file), what, cure)) from error
    return found


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(one.get(key), dict)
        merged[key] = _merged(one[key], value) if both else value
    return merged


def _short_host() -> str:
    return socket.gethostname().split(".", 1)[0]


def _fedmsg_name(keys: _Keys, conf: Mapping[str, Any]) -> str:
    usual = "relay_inbound" if conf.get("active") else f"{keys.module}.{_short_host()}"
    return str(conf.get("name") or usual)


def _fedmsg_urls(keys: _Keys, conf: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the endpoints that fedmsg would bind, or the relay that it would connect to."""
    name = _fedmsg_name(keys, conf)
    value = conf.get(name) if conf.get("active") else conf.get("endpoints", {}).get(name)
    if not value:
        cure = f'set it to "tcp://HOST:PORT", or name endpoints["{name}"] in {_FEDMSG_D}'
        keys.fault("URL", "is not set, and fedmsg has no endpoint for this application", cure)
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _fedmsg_files(keys: _Keys, conf: Mapping[str, Any]) -> dict[str, str]:
    """Return the certificate and the key that fedmsg would sign with."""
    if not conf.get("sign_messages") or keys.text("CERT_FILE"):
        return {}
    name = _fedmsg_name(keys, conf)
    if "cert_prefix" in conf:
        name = f"{conf['cert_prefix']}.{_short_host()}"
    elif name == "relay_inbound":
        name = f"shell.{_short_host()}"
    found = conf.get("certnames", {}).get(name)
    if not found:
        cure = f'name certnames["{name}"] in {_FEDMSG_D}'
        keys.fault("CERT_FILE", "is not set, and fedmsg has no certificate for it", cure)
        return {}
    directory = conf.get("ssldir", "/etc/pki/fedmsg")
    return {"certfile": f"{directory}/{found}.crt", "keyfile": f"{directory}/{found}.key"}


_READERS: dict[str, Callable[[_Keys, str], MessageBus]] = {
    "": _dummy,
    "test": _test,
    "fedmsg": _fedmsg,
    "kombu": _kombu,
    "proton": _proton,
    "stomp": _stomp,
    BACKEND: _backend,
}
