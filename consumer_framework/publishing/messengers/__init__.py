# SPDX-License-Identifier: GPL-2.0-or-later
"""The messengers of a relay, their interface, and their registry. A messenger is one way to send.

A messenger gets a batch and returns the fate of each message: :class:`Sent`, :class:`Retry` or
:class:`Reject`. It never decides about a message: waiting, order and dead rows are the relay's. It
never declares anything on the broker. It never raises for a fault of the broker: it returns
:class:`Retry`.

A messenger sends the wire format of fedora-messaging, so that a consumer gets the same message. A
messenger that would change some messages says so in its :attr:`Messenger.features`; the relay
rejects such messages unless ``lossy = true``.

Third parties register a messenger as an entry point of the group ``consumer_framework.messengers``.
Its name is the value of ``messenger`` in the configuration. Its object is a callable: it takes an
:class:`Endpoints` and the ``options`` table as keyword arguments, and returns a :class:`Messenger`.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable
from urllib.parse import unquote, urlsplit

from consumer_framework.core import secrets
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.settings.brokers import addresses
from consumer_framework.settings.problems import unknown_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from consumer_framework.publishing.message import Outgoing
    from consumer_framework.settings import OutboxSettings

GROUP = "consumer_framework.messengers"
_PATH = "consumer_config.framework.outbox"


class Scope(Enum):
    """The messages that a fault concerns."""

    MESSAGE = "message"  # this message alone
    TOPIC = "topic"  # each message with this exchange and topic: no permission, no exchange
    ENDPOINT = "endpoint"  # each message: the endpoint is away, blocked or slow


@dataclass(frozen=True, slots=True)
class Sent:
    """The endpoint has the message, and is responsible for it now.

    Attributes:
        routed: False if no queue got it; None if the protocol does not tell.
    """

    routed: bool | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The message was perhaps not taken; sending it again may succeed.

    Attributes:
        reason: One line for people, without secrets.
        scope: The messages that the same fault concerns.
    """

    reason: str
    scope: Scope = Scope.ENDPOINT


@dataclass(frozen=True, slots=True)
class Reject:
    """The message can never be sent by this messenger.

    Attributes:
        reason: One line for people.
    """

    reason: str


Result: TypeAlias = Sent | Retry | Reject


class Feature(Enum):
    """A property of a message that a messenger keeps."""

    HEADERS = "headers"  # all headers, with their types
    TEXT_HEADERS = "text headers"  # the headers whose values are texts
    SEVERITY = "severity"  # a severity other than INFO
    SCHEMA = "schema"  # the message class
    PRIORITY = "priority"
    CONFIRMS = "confirms"  # `Sent` means that the endpoint is responsible
    ROUTED = "routed"  # `Sent.routed` is known


EVERYTHING = frozenset(Feature)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The brokers that a messenger may use, in the order to try them.

    Attributes:
        urls: One URL each; the scheme is the messenger's. A secret in it is never logged.
        ca_cert: A PEM file with the CA certificates; None for the system's.
        certfile: A PEM file with the client's certificate.
        keyfile: A PEM file with its key.
        client_properties: The names of the connection for the broker's administrators.
        timeout: Seconds to connect, and to wait for the answer to a batch.
        window: The number of messages that a messenger with ``keeps_window`` sends before the
            endpoint has confirmed the first of them.
    """

    urls: tuple[str, ...]
    ca_cert: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    client_properties: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 30.0
    window: int = 100


@runtime_checkable
class Messenger(Protocol):
    """Sends messages to one endpoint at a time. One thread uses it.

    A messenger gets at most a window of messages at once. One that has a true attribute
    ``keeps_window`` gets more, and sends the next ones while the endpoint confirms the first ones:
    :attr:`Endpoints.window` of them at most are on their way at any time.
    """

    @property
    def features(self) -> frozenset[Feature]:
        """The properties of a message that this messenger keeps, at its present endpoint."""
        ...

    def open(self) -> None:
        """Connect to the first endpoint that answers.

        Raises:
            ConnectionError: None of them does. Nothing was sent.
        """
        ...

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Send *batch* in its order, and wait until the fate of each message is known.

        Returns:
            One result for each message, in the order of *batch*. If its endpoint goes away, a
            messenger connects to the next one and sends again the messages whose fate it does not
            know. After the last endpoint it returns :class:`Retry` for them. It raises only on a
            defect.
        """
        ...

    def close(self) -> None:
        """Close the connection. Doing it twice does no harm."""
        ...


# fedora-messaging gives each message these headers. A consumer gets the same message without those
# that have the value of every message; a feature stands for each other value.
_USUAL_HEADERS = frozenset(
    {
        "fedora_messaging_schema",
        "fedora_messaging_schema_package",
        "fedora_messaging_severity",
        "priority",
        "sent-at",
    }
)


def refusal(message: Outgoing, features: frozenset[Feature]) -> str | None:
    """Return the reason why a messenger with *features* would change *message*, or None.

    Every messenger keeps topic, body and message id. The header ``sent-at`` is lost with a
    messenger without :attr:`Feature.TEXT_HEADERS`; no message is refused for that.
    """
    if features >= EVERYTHING:
        return None
    severity = message.headers.get("fedora_messaging_severity", logging.INFO)
    if severity != logging.INFO and Feature.SEVERITY not in features:
        return "its severity is not INFO, which this messenger cannot send"
    schema = message.headers.get("fedora_messaging_schema", "base.message")
    if schema != "base.message" and Feature.SCHEMA not in features:
        return f'its message class "{schema}" would be lost with this messenger'
    if message.priority and Feature.PRIORITY not in features:
        return "its priority would be lost with this messenger"
    header = _lost_header(message, features)
    return header and f'this messenger cannot keep its header "{header}" as it is'


def _lost_header(message: Outgoing, features: frozenset[Feature]) -> str | None:
    if Feature.HEADERS in features:
        return None
    others = [(n, v) for n, v in message.headers.items() if n not in _USUAL_HEADERS]
    texts = Feature.TEXT_HEADERS in features
    return next((n for n, v in others if not (texts and isinstance(v, str))), None)


# One is for tests, and one is made by `integrations.pdc`.
_INTERNAL = {"capture", "pdc-backend"}


def find(name: str) -> Callable[..., Messenger]:
    """Return the factory of the messenger *name*.

    Raises:
        ConfigurationError: There is none, or a package that it needs is missing.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    path = f"{_PATH}.messenger"
    if name not in known:
        public = sorted(known.keys() - _INTERNAL)
        near = difflib.get_close_matches(name, public, 1)
        cure = f'did you mean "{near[0]}"?' if near else f"use one of {', '.join(public)}"
        raise ConfigurationError(Problem(path, f'there is no messenger "{name}"', cure))
    try:
        factory: Callable[..., Messenger] = known[name].load()
    except ImportError as error:
        what = f'the messenger "{name}" needs a package that is missing: {error}'
        cure = (
            f"install it with `pip install 'consumer-framework[{name}]'`"
            f" or `dnf install python3-consumer-framework+{name}`"
        )
        raise ConfigurationError(Problem(path, what, cure)) from error
    return factory


def endpoints_of(document: Mapping[str, Any], settings: OutboxSettings) -> Endpoints:
    """Return the brokers that a configuration names, and hide their passwords from logs.

    Args:
        document: The configuration of fedora-messaging, with its defaults.
        settings: Its table ``[consumer_config.framework.outbox]``. Without ``endpoints`` there,
            the brokers are those of ``amqp_url`` and ``brokers``.

    Raises:
        ConfigurationError: ``amqp_url`` cannot be understood.
    """
    urls = settings.endpoints or tuple(_cluster(document, settings.messenger))
    for url in urls:
        if password := urlsplit(url).password:
            for form in {password, unquote(password)} - {"guest"}:
                secrets.hide(form, "the password of an endpoint")
    tls = {key: document["tls"].get(key) for key in ("ca_cert", "certfile", "keyfile")}
    properties = document["client_properties"]
    return Endpoints(
        urls,
        **tls,
        client_properties=properties,
        timeout=settings.endpoint_timeout,
        window=settings.window,
    )


def _cluster(document: Mapping[str, Any], messenger: str) -> Iterator[str]:
    """Yield the URL of each broker of ``amqp_url`` and ``brokers``."""
    url = document["amqp_url"]
    if messenger == "fedora":  # fedora-messaging connects to one
        yield url
        return
    framework = document["consumer_config"].get("framework", {})
    try:
        parts = urlsplit(url)
        found = addresses(url, framework.get("brokers", ()))
    except ValueError:
        # The error's text may show parts of a password.
        cure = "percent-encode special characters of user, password and vhost, and check the port"
        raise ConfigurationError(Problem("amqp_url", "cannot be understood", cure)) from None
    login, at, _ = parts.netloc.rpartition("@")
    for address in found:
        yield parts._replace(netloc=f"{login}{at}{address}").geturl()


def configured(document: Mapping[str, Any], settings: OutboxSettings) -> Messenger:
    """Return the messenger that a configuration describes; see :func:`endpoints_of`.

    Raises:
        ConfigurationError: It cannot be made.
    """
    return make(settings.messenger, endpoints_of(document, settings), settings.options)


def make(name: str, endpoints: Endpoints, options: Mapping[str, Any]) -> Messenger:
    """Make the messenger *name*. It connects to nothing yet.

    Args:
        name: As in the configuration.
        endpoints: The brokers.
        options: The ``options`` table of the configuration.

    Raises:
        ConfigurationError: There is no such messenger, or it refuses an endpoint or an option.
    """
    factory = find(name)
    path = f"{_PATH}.options"
    if problems := unknown_keys(path, options, _known_options(factory)):
        raise ConfigurationError(*problems)
    try:
        return factory(endpoints, **options)
    except TypeError as error:
        what = f'the messenger "{name}" refuses the options: {error}'
        raise ConfigurationError(Problem(path, what, "see its documentation")) from error


def _known_options(factory: Callable[..., Messenger]) -> set[str] | None:
    """Return the options that *factory* takes; None if they are those of its library."""
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}
