# SPDX-License-Identifier: GPL-2.0-or-later
"""A delivery as it came from the broker, and the outcomes of its handler, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

from .attempt import NO_HISTORY, History

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .recovery import Decision

# The encodings of text that a body may have, by normalized name. Python has many more that are no
# encodings of text, or take the square of the body's length: punycode, idna, unicode_escape. Other
# names are not looked up, because Python would remember every one of them.
_TEXT = re.compile(r"ascii|latin_1|utf_8(_sig)?|utf_(16|32)(_be|_le)?|iso8859_\d+|cp125\d")
_NAMES = {**{codec: codec for codec in (*aliases.values(), "utf_8_sig")}, **aliases}
_CODECS = {name: codec for name, codec in _NAMES.items() if _TEXT.fullmatch(codec)}


def codec_of(encoding: object) -> str:
    """Return Python's name of *encoding*, which a publisher named.

    Raises:
        LookupError: It is not UTF-8, nor one that is decoded as quickly.
    """
    if encoding == "utf-8":
        return "utf-8"
    name = normalize_encoding(encoding).lower() if isinstance(encoding, str) else ""
    if name not in _CODECS:
        raise LookupError(
            f"its content_encoding is {encoding!r}, which is none of UTF-8, UTF-16, UTF-32, ASCII, "
            "Latin-1 and their relatives"
        )
    return _CODECS[name]


# The properties of a message, in the order of the bits that say which there are (AMQP 0-9-1,
# sections 1.8, class basic, and 4.2.6.1).
PROPERTIES = (
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
# The header with the bytes of properties that cannot be decoded.
RAW_PROPERTIES = "x-undecodable-properties"


class Properties(Protocol):
    """The AMQP message properties that the core reads (AMQP 0-9-1, section 1.8, basic)."""

    @property
    def message_id(self) -> str | None:
        """The publisher's name for the message; fedora-messaging always sets one."""
        ...

    @property
    def headers(self) -> Mapping[str, Any] | None:
        """The message headers table, None where the publisher sent none."""
        ...


class Delivery(NamedTuple):
    """One ``basic.deliver``: a tuple, which is made four times as fast as a frozen dataclass.

    Attributes:
        queue: The name of the queue it came from, also where the broker chose that name.
        generation: The number of the channel that it came on. Channels are numbered upwards for
            the life of the process; a settle for a channel that is gone is void.
        delivery_tag: The broker's number for it on that channel.
        redelivered: Whether the broker delivered the message before, perhaps to another consumer,
            perhaps without a handler having seen it.
        exchange: The exchange that it was published to.
        routing_key: The topic that it was published with.
        properties: The AMQP properties as they were received.
        body: The message as it was received.
        received_at: When, in seconds since the epoch.
        arrived_at: When, in monotonic seconds of this process; 0.0 where it came from the store.
        history: Its failed attempts and crashes so far.
        row: The store's number for it if it came from the store, with generation 0; else 0.
        lane: Its ordering key: it must not overtake others with the same one; "" for none.
        decoded: The message, until it is taken out, if it was decoded already to find the lane.
        route: The route of the consumer that has it; "" for a delivery that is in none.
        replayed: Whether an operator had it run again. A replay has one attempt, and goes back to
            quarantine if that fails.
    """

    queue: str
    generation: int
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    received_at: float = 0.0
    history: History = NO_HISTORY
    row: int = 0
    lane: str = ""
    replayed: bool = False
    arrived_at: float = 0.0
    decoded: list[Any] | None = None
    route: str = ""

    @property
    def message_id(self) -> str:
        """The publisher's message id, ``""`` where there is none."""
        return readable(self.properties.message_id or "")

    @property
    def published_headers(self) -> dict[str, Any]:
        """The headers as they were published: brokers change their own, which begin with "x-"."""
        return published(self.properties.headers)

    def in_route(self, route: str) -> Delivery:
        """Return the delivery in *route*, in half the time that ``_replace`` takes."""
        return tuple.__new__(Delivery, (*self[:-1], route))

    def redelivers(self, earlier: Delivery) -> bool:
        """Tell whether this is the message of *earlier*, delivered anew on a later channel.

        A message id alone does not decide: nothing makes publishers keep theirs unique, and a
        message that has none must be recognised as well.
        """
        return (
            self.redelivered
            and self.generation > earlier.generation
            and self.message_id == earlier.message_id
            and self.queue == earlier.queue
            and self.routing_key == earlier.routing_key
            and self.body == earlier.body
            and self.published_headers == earlier.published_headers
        )


def published(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers of a message as they were published."""
    return {
        name: value
        for name, value in (headers or {}).items()
        if name == RAW_PROPERTIES or not readable(name).startswith("x-")
    }


def readable(name: str | bytes) -> str:
    """Return *name* as text: pika leaves names that are no UTF-8 as bytes."""
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


class Publishable(Protocol):
    """A message that may be sent, as the outbox stores it."""

    @property
    def id(self) -> str:
        """The message id."""
        ...

    @property
    def topic(self) -> str:
        """The topic, with its prefix."""
        ...


# A message, and its treatment if the broker does not take it now.
Publication: TypeAlias = tuple[Publishable, str]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Published:
    """The messages that one run of the handler published; they are not stored yet.

    Attributes:
        messages: In the order of publishing.
        deliveries: The deliveries of the run that the handler is done with. They are acknowledged
            once the messages are stored. A batch has several.
    """

    messages: tuple[Publication, ...]
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned.

    Attributes:
        published: The messages that the run published; None for none. Likewise below.
    """

    published: Published | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """The handler had nothing to do, for a *reason* of its own."""

    reason: str
    published: Published | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised *error*: an author's signal, or anything else.

    Attributes:
        route: The route that raised it; "" in a consumer without routes.
    """

    error: BaseException
    published: Published | None = None
    route: str = ""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """The bytes are no valid message, so no handler ran."""

    error: Exception
    published: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process died while the handler had the message; it did not run again.

    Attributes:
        times: How often the process died.
        hung: Whether it was restarted the last time, because the handler did not return in time.
        route: The route that had it the last time; "" in a consumer without routes.
    """

    times: int
    hung: bool = False
    route: str = ""
    published: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class SettledBefore:
    """An earlier delivery of the message was settled, or is in the store; it did not run again."""

    published: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """It was taken back before a handler saw it, because the instance stops, pauses or waits."""

    published: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """An earlier message of its lane is in the store; it did not run."""

    published: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Unrouted:
    """No route of the consumer takes the message; it did not run."""

    published: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class RouteResult:
    """The result of one route for a message.

    Attributes:
        route: The name of the route.
        decision: The disposition of the message as far as this route goes.
        outcome: The outcome of its run; None if the route did not run this time.
    """

    route: str
    decision: Decision
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """Several routes have the message. The messages that they published are stored by now.

    Attributes:
        results: One for each route, in the order in which they run.
    """

    results: tuple[RouteResult, ...]
    published: ClassVar[None] = None

    @property
    def is_withdrawn(self) -> bool:
        """True if a route was taken back before it saw the message: the redelivery must run."""
        return any(isinstance(result.outcome, Withdrawn) for result in self.results)


Outcome: TypeAlias = (
    Succeeded
    | Skipped
    | Failed
    | Undecodable
    | Crashed
    | SettledBefore
    | Withdrawn
    | Blocked
    | Unrouted
    | Routed
)
