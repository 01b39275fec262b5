# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger ``amqp``: AMQP 0-9-1 with publisher confirms, by pika.

At most :attr:`.Endpoints.window` messages are on their way; more of the batch follow as the broker
confirms them, in any order (https://www.rabbitmq.com/docs/confirms). Each message is ``mandatory``,
so that the broker returns it if no queue gets it. The wire data are those of
:func:`fedora_messaging.api.publish`.

The broker closes the channel if a message may not be published or its exchange is missing. It does
not say which message that was, and the confirmations of the messages before it are lost. So the
messages on their way are sent again on a new channel, one at a time: now the one that closes the
channel is known. Those before it arrive twice.

The loop of pika runs only while a batch is sent. So there are no heartbeats; the kernel probes an
idle connection instead (tcp(7), keepalive). pika's ``blocked_connection_timeout`` is not used,
since it ends the connection: an endpoint that blocks for :attr:`.Endpoints.timeout` seconds makes
the messenger use the next one, see :mod:`.failover`.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections import Counter, defaultdict, deque
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeAlias

import pika
from pika import exceptions, frame, spec
from pika.adapters.select_connection import IOLoop

from consumer_framework.core.errors import ConfigurationError, Problem

from . import Endpoints, Reject, Retry, Scope, Sent
from .failover import BlockedError, Failover, host_of, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Result

_ROUTED, _UNROUTABLE = Sent(routed=True), Sent(routed=False)
# The most messages that are encoded before the loop runs, so that the broker works meanwhile.
_STRIDE = 25
# Seconds after which an idle connection is probed, between probes, and the number of probes.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
# The most seconds that the broker may take to say goodbye.
_GOODBYE = 2.0
_FORBIDDEN, _MISSING, _REFUSED = 403, 404, 406
# Bytes of the longest character in UTF-8, and of the properties besides the headers.
_PER_CHARACTER, _OTHER_PROPERTIES = 4, 2048


class Amqp(Failover):
    """Sends by AMQP 0-9-1 with publisher confirms.

    Args:
        endpoints: URLs with the schemes ``amqp`` and ``amqps``, as pika takes them
            (:class:`pika.URLParameters`). With a certificate and a key, a TLS connection
            authenticates with them (SASL EXTERNAL), whatever the URL says.

    Raises:
        ConfigurationError: pika refuses a URL.
    """

    keeps_window = True

    def __init__(self, endpoints: Endpoints) -> None:
        super().__init__(endpoints)
        for url in endpoints.urls:
            _parsed(url)

    def connect(self, url: str) -> _Link:
        """Connect to the broker at *url*, and open a channel with confirms."""
        return _Link(_parameters(url, self.endpoints), self.endpoints)


def _parsed(url: str) -> pika.URLParameters:
    try:
        parsed = pika.URLParameters(url)
        is_right = url.startswith(("amqp://", "amqps://"))
    except Exception as error:  # noqa: BLE001 -- pika raises anything for a wrong value
        raise _wrong_url(f"the URL of {host_of(url)} is invalid: {error}") from None
    if not is_right:
        raise _wrong_url(f"the URL of {host_of(url)} is invalid: its scheme is not amqp or amqps")
    return parsed


def _wrong_url(what: str) -> ConfigurationError:
    path = "consumer_config.framework.outbox.endpoints"
    return ConfigurationError(Problem(path, what, "write it as amqps://USER@HOST:5671/%2FVHOST"))


def _parameters(url: str, endpoints: Endpoints) -> pika.URLParameters:
    made = _parsed(url)
    if made.ssl_options is not None:
        if endpoints.certfile and endpoints.keyfile:
            made.credentials = pika.credentials.ExternalCredentials()
        made.ssl_options = pika.SSLOptions(tls_context(endpoints), made.host)
    if made.client_properties is None:
        made.client_properties = dict(endpoints.client_properties)
    made.heartbeat = 0
    made.blocked_connection_timeout = None
    made.connection_attempts = 1
    made.socket_timeout = made.stack_timeout = endpoints.timeout
    made.tcp_options = _KEEPALIVE
    return made


_log = logging.getLogger(__name__)


# Id, exchange and topic: a program may publish a message twice, and with two topics.
_Identity: TypeAlias = tuple[str, str, str]


def _identity(message: Outgoing) -> _Identity:
    return message.id, message.exchange, message.topic


class _ChannelClosedError(Exception):
    """The broker closed the channel."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}, {text}")
        self.code = code


class _Connection(pika.SelectConnection):
    """Writes several messages at once; pika makes a system call and a packet of each frame."""

    _held: list[bytes] | None = None

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._held is None:
            super()._adapter_emit_data(data)
        else:
            self._held.append(data)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Write the frames of the block at its end."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self._adapter_emit_data(b"".join(held))


class _Link:
    """A connection with a channel in confirm mode."""

    # By delivery tag: the number of the message in its batch, and its identity.
    _unsettled: dict[int, tuple[int | None, _Identity]]
    _channel_fault: _ChannelClosedError | None

    def __init__(self, parameters: pika.URLParameters, endpoints: Endpoints) -> None:
        self._timeout = endpoints.timeout
        self._window = endpoints.window
        self._fault: str | None = None  # of the connection
        self._blocked: str | None = None
        self._fates: dict[int, Result] = {}
        # By exchange and topic, or exchange alone: the faults that closed the channel.
        self._refused: dict[tuple[str, str | None], Result] = {}
        self._forget_channel()
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._connection = _Connection(
            parameters,
            on_open_error_callback=self._on_connection_closed,
            on_close_callback=self._on_connection_closed,
            custom_ioloop=self._loop,
        )
        try:
            self._wait(lambda: self._connection.is_open)
            self._connection.add_on_connection_blocked_callback(self._on_blocked)
            self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
            self._open_channel()
        except _ChannelClosedError as error:
            self.close()
            raise ConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def send(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Send *batch*; see :class:`.Link`."""
        self._fates = fates
        self._unsettled = {tag: (None, known) for tag, (_, known) in self._unsettled.items()}
        self._poll(at_once=True)
        self._refused = {}
        rest = self._without_known(batch)
        is_sent = False
        while not is_sent:
            try:
                self._pipeline(rest)
                is_sent = True
            except _ChannelClosedError:
                self._one_by_one(self._on_way(batch) or rest[:1])
                rest = [pair for pair in batch if pair[0] not in fates]

    def close(self) -> None:
        """Close the connection; abort it if the broker says nothing."""
        try:
            self._say_goodbye()
        except AssertionError:
            # pika fails so if a connection is closed amid its handshake; the socket is closed then.
            _log.debug("a connection was closed before it was open", exc_info=True)
        self._loop.deactivate_poller()
        self._loop.close()

    def _say_goodbye(self) -> None:
        if self._connection.is_closed:
            return
        if not self._connection.is_closing:
            self._connection.close()
        until = time.monotonic() + min(_GOODBYE, self._timeout)
        while self._fault is None and time.monotonic() < until:
            self._poll(until - time.monotonic())
        if self._fault is None:
            self._connection._terminate_stream(None)  # noqa: SLF001 -- there is no public abort
            self._poll(at_once=True)

    # The batch

    def _without_known(self, batch: Sequence[tuple[int, Outgoing]]) -> list[tuple[int, Outgoing]]:
        """Leave out the messages that this link sent before, when the broker blocked it."""
        if not self._unsettled and not self._late:
            return list(batch)
        tags: defaultdict[_Identity, deque[int]] = defaultdict(deque)
        for tag, (_, identity) in self._unsettled.items():
            tags[identity].append(tag)
        rest = []
        for number, message in batch:
            identity = _identity(message)
            if late := self._late.get(identity):
                self._fates[number] = late.popleft()
                if not late:
                    del self._late[identity]
            elif found := tags.get(identity):
                self._unsettled[found.popleft()] = number, identity
            else:
                rest.append((number, message))
        return rest

    def _on_way(self, batch: Sequence[tuple[int, Outgoing]]) -> list[tuple[int, Outgoing]]:
        numbers = {number for number, _ in self._unsettled.values()}
        return [pair for pair in batch if pair[0] in numbers]

    def _pipeline(self, batch: Sequence[tuple[int, Outgoing]]) -> None:
        stride = min(max(self._window // 4, 1), _STRIDE)
        most = self._window - stride
        for start in range(0, len(batch), stride):
            self._wait(lambda: self._blocked is None and len(self._unsettled) <= most)
            with self._connection.at_once():
                for number, message in batch[start : start + stride]:
                    self._publish(number, message)
            self._poll(at_once=True)
        self._wait(lambda: not self._unsettled)

    def _one_by_one(self, batch: Sequence[tuple[int, Outgoing]]) -> None:
        for number, message in batch:
            try:
                self._open_channel()
                self._pipeline([(number, message)])
            except _ChannelClosedError as error:
                result = self._fates[number] = _result_of(error)
                if isinstance(result, Retry) and result.scope is Scope.TOPIC:
                    topic = None if error.code == _MISSING else message.topic
                    self._refused[message.exchange, topic] = result
        self._open_channel()

    def _publish(self, number: int, message: Outgoing) -> None:
        if self._refused and (known := self._refusal(message)):
            self._fates[number] = known
            return
        properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            headers=dict(message.headers),
            message_id=message.id,
            priority=message.priority,
        )
        self._check()
        if (fault := self._unsendable(properties)) is not None:
            self._fates[number] = Reject(fault)
            return
        try:
            self._channel.basic_publish(
                message.exchange, message.topic, message.body, properties, mandatory=True
            )
        except (exceptions.AMQPError, ValueError, TypeError, AssertionError, struct.error) as error:
            # pika has encoded all frames before it writes the first one.
            self._fates[number] = Reject(f"AMQP cannot carry it: {error!r}")
            return
        self._tag += 1
        self._unsettled[self._tag] = number, _identity(message)

    def _refusal(self, message: Outgoing) -> Result | None:
        of_topic = self._refused.get((message.exchange, message.topic))
        return of_topic or self._refused.get((message.exchange, None))

    def _unsendable(self, properties: pika.BasicProperties) -> str | None:
        """Find a header frame that is too large: the broker would end the connection."""
        most = self._connection.params.frame_max
        # No value takes more bytes than four for each character of its text here.
        texts = len(repr(properties.headers))
        if not most or texts * _PER_CHARACTER + _OTHER_PROPERTIES < most:
            return None
        size = len(frame.Header(1, 0, properties).marshal())
        return f"its headers have {size} bytes; the broker takes {most}" if size > most else None

    # The loop

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Run the loop until *is_done*.

        Raises:
            ConnectionError: The connection ended, or nothing moved for the timeout.
            BlockedError: The same, and the broker blocks the connection.
            _ChannelClosedError: The broker closed the channel.
        """
        progress, until = self._progress(), time.monotonic() + self._timeout
        while not is_done():
            self._check()
            left = until - time.monotonic()
            if left <= 0:
                raise self._silence()
            self._poll(left)
            if (now := self._progress()) != progress:
                progress, until = now, time.monotonic() + self._timeout
        self._check()

    def _progress(self) -> tuple[int, int]:
        if self._blocked is not None or not self._connection.is_open:
            return 0, 0
        size = self._connection._get_write_buffer_size()  # noqa: SLF001 -- it has no public name
        return len(self._unsettled), size

    def _silence(self) -> ConnectionError:
        if self._blocked is not None:
            return BlockedError(f"the broker blocks publishers: {self._blocked}")
        return ConnectionError(f"no answer within {self._timeout:g} seconds")

    def _check(self) -> None:
        if self._fault is not None:
            raise ConnectionError(self._fault)
        if self._channel_fault is not None:
            raise self._channel_fault

    def _poll(self, seconds: float = 0.0, *, at_once: bool = False) -> None:
        """Handle the next events, or wait for them at most *seconds*."""
        timer = self._loop.call_later(0.0 if at_once else max(0.0, seconds), _nothing)
        self._loop.poll()
        self._loop.process_timeouts()
        self._loop.remove_timeout(timer)

    # The channel and its events

    def _forget_channel(self) -> None:
        self._channel_fault = None
        self._channel: Any = None
        self._tag = 0
        self._unsettled = {}
        self._returned: Counter[_Identity] = Counter()
        # Confirmed between two batches.
        self._late: defaultdict[_Identity, deque[Result]] = defaultdict(deque)

    def _open_channel(self) -> None:
        if self._channel is not None and self._channel_fault is None:
            return
        self._forget_channel()
        ready: list[Any] = []
        self._channel = self._connection.channel(on_open_callback=ready.append)
        self._channel.add_on_close_callback(self._on_channel_closed)
        self._channel.add_on_return_callback(self._on_returned)
        self._wait(lambda: bool(ready))
        ready.clear()
        self._channel.confirm_delivery(self._on_confirmed, callback=ready.append)
        self._wait(lambda: bool(ready))

    def _on_confirmed(self, confirmed: Any) -> None:
        method = confirmed.method
        tag, accepted = method.delivery_tag, isinstance(method, spec.Basic.Ack)
        tags = list(takewhile(lambda t: t <= tag, self._unsettled)) if method.multiple else [tag]
        for one in tags:
            number, identity = self._unsettled.pop(one)
            result = self._result(identity, accepted=accepted)
            if number is None:
                self._late[identity].append(result)
            else:
                self._fates[number] = result

    def _result(self, identity: _Identity, *, accepted: bool) -> Result:
        # basic.return comes before basic.ack of the same message.
        returned = identity in self._returned
        if returned:
            self._returned[identity] -= 1
            self._returned += Counter()
        if not accepted:
            return Retry("the broker refused it (basic.nack): is a queue full?", Scope.MESSAGE)
        return _UNROUTABLE if returned else _ROUTED

    def _on_returned(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        self._returned[properties.message_id, method.exchange, method.routing_key] += 1

    def _on_channel_closed(self, _channel: Any, reason: BaseException) -> None:
        if isinstance(reason, exceptions.ChannelClosed):
            self._channel_fault = _ChannelClosedError(reason.reply_code, reason.reply_text)

    def _on_connection_closed(self, _connection: Any, reason: BaseException) -> None:
        self._fault = _told(reason)

    def _on_blocked(self, _connection: Any, blocked: Any) -> None:
        self._blocked = blocked.method.reason or "it gives no reason"

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self._blocked = None


def _nothing() -> None:
    pass


def _result_of(error: _ChannelClosedError) -> Result:
    if error.code in {_FORBIDDEN, _MISSING}:
        return Retry(f"the broker refused it: {error}", Scope.TOPIC)
    if error.code == _REFUSED:  # PRECONDITION_FAILED: larger than max_message_size
        return Reject(f"the broker refused it: {error}")
    return Retry(f"the broker refused it: {error}", Scope.MESSAGE)


def _told(reason: BaseException) -> str:
    """Return one line about the end of a connection."""
    if isinstance(reason, exceptions.ConnectionClosed):
        return f"closed by the broker: {reason.reply_code}, {reason.reply_text}"
    # pika wraps the fault of the socket into those of its phases.
    while (inner := _inner(reason)) is not None:
        reason = inner
    return " ".join(str(reason).split()) or type(reason).__name__


def _inner(reason: Any) -> BaseException | None:
    if failures := getattr(reason, "exceptions", None):
        return failures[-1]  # type: ignore[no-any-return]
    inner = getattr(reason, "exception", None)
    if isinstance(inner, BaseException):
        return inner
    first = reason.args[0] if reason.args else None
    return first if isinstance(first, BaseException) else None
