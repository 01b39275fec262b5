# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger ``kombu``: kombu and py-amqp, for applications that use kombu already.

Three settings of kombu decide if a message can be lost, and all are set here. Without the transport
option ``confirm_publish`` a message for a missing exchange "succeeds". Without ``confirm_timeout``
a confirmation that never comes blocks for ever. Without ``on_return`` nobody hears of a message
that no queue got.

kombu waits for the confirmation of each message, so it sends one message for each way to the broker
and back.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import kombu
from amqp import exceptions

from consumer_framework.core.errors import ConfigurationError, Problem

from . import EVERYTHING, Endpoints, Feature, Reject, Retry, Scope, Sent
from .failover import Failover, host_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Result

_FORBIDDEN, _MISSING, _REFUSED = 403, 404, 406
_AMQP = frozenset({"amqp", "amqps", "pyamqp"})


class Kombu(Failover):
    """Sends with :class:`kombu.Producer`.

    Args:
        endpoints: URLs as :class:`kombu.Connection` takes them. The one for AMQP 0-9-1 is
            ``amqp://`` or ``amqps://``; a transport without confirms, as ``memory://``, works too.
        options: Arguments of :class:`kombu.Connection`, such as ``ssl``, ``virtual_host`` or
            ``transport_options``.

    Raises:
        ConfigurationError: kombu refuses a URL or an option.
    """

    def __init__(self, endpoints: Endpoints, **options: Any) -> None:
        super().__init__(endpoints)
        self._options = options
        for url in endpoints.urls:
            try:
                self._connection(url)
            except (TypeError, ValueError, KeyError) as error:
                path = "consumer_config.framework.outbox.endpoints"
                what = f"kombu refuses the URL of {host_of(url)} or the options: {error}"
                cure = "write it as amqps://USER@HOST:5671/VHOST, without the parameters of pika"
                raise ConfigurationError(Problem(path, what, cure)) from None

    @property
    def features(self) -> frozenset[Feature]:
        """The properties of a message that the transport of the present endpoint keeps."""
        if not self.endpoints.urls or _speaks_amqp(self.endpoints.urls[self._at]):
            return EVERYTHING
        return EVERYTHING - {Feature.CONFIRMS, Feature.ROUTED}

    def connect(self, url: str) -> _Link:
        """Connect to the endpoint at *url*."""
        made = self._connection(url)
        try:
            return _Link(made, self.endpoints.timeout, confirms=_speaks_amqp(url))
        except OSError:
            raise
        except Exception as error:
            raise ConnectionError(_told(error)) from error

    def _connection(self, url: str) -> kombu.Connection:
        options = dict(self._options)
        given = options.pop("transport_options", {})
        if _speaks_amqp(url):
            # py-amqp waits for each answer while it connects as long as a read may take.
            defaults = {"confirm_publish": True, "read_timeout": self.endpoints.timeout}
            properties = {"client_properties": dict(self.endpoints.client_properties)}
            given = defaults | properties | given
            if url.startswith("amqps:"):
                options = self._tls(url) | options
            if isinstance(asked := options.get("ssl"), dict) and asked:
                # Without a name, py-amqp accepts the certificate of any host.
                options["ssl"] = {"server_hostname": urlsplit(url).hostname, **asked}
        # kombu changes the dictionary.
        return kombu.Connection(
            url,
            connect_timeout=self.endpoints.timeout,
            heartbeat=0,
            transport_options=dict(given),
            **options,
        )

    def _tls(self, url: str) -> dict[str, Any]:
        host = urlsplit(url).hostname
        made: dict[str, Any] = {"server_hostname": host, "cert_reqs": ssl.CERT_REQUIRED}
        if self.endpoints.ca_cert:
            made["ca_certs"] = self.endpoints.ca_cert
        if not (self.endpoints.certfile and self.endpoints.keyfile):
            return {"ssl": made}
        made |= {"certfile": self.endpoints.certfile, "keyfile": self.endpoints.keyfile}
        return {"ssl": made, "login_method": "EXTERNAL"}


def _speaks_amqp(url: str) -> bool:
    return url.partition(":")[0] in _AMQP


class _Link:
    """A connection with a channel in confirm mode."""

    def __init__(self, connection: kombu.Connection, timeout: float, *, confirms: bool) -> None:
        self._connection = connection
        self._timeout = timeout
        self._confirms = confirms
        self._producer: kombu.Producer | None = None
        self._returned = False
        try:
            self._connection.connect()
            self._open_channel()
        except BaseException:
            self.close()
            raise

    def send(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Send *batch*; see :class:`.failover.Link`."""
        refused: dict[tuple[str, str | None], Result] = {}
        for number, message in batch:
            topic, exchange = (message.exchange, message.topic), (message.exchange, None)
            if known := refused.get(topic) or refused.get(exchange):
                fates[number] = known
                continue
            try:
                fates[number] = self._publish(message)
            except exceptions.ChannelError as error:
                result = fates[number] = _result_of(error)
                if isinstance(result, Retry) and result.scope is Scope.TOPIC:
                    refused[exchange if error.reply_code == _MISSING else topic] = result
                self._reopen_channel()
            except self._faults as error:
                raise ConnectionError(_told(error)) from error

    def close(self) -> None:
        """Drop the connection without waiting for the broker, which may be silent."""
        self._connection.collect(socket_timeout=1.0)

    def _publish(self, message: Outgoing) -> Result:
        assert self._producer is not None  # noqa: S101 -- a link has a channel
        self._returned = False
        try:
            self._producer.publish(
                message.body,
                routing_key=message.topic,
                exchange=message.exchange,
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                headers=dict(message.headers),
                priority=message.priority,
                message_id=message.id,
                mandatory=self._confirms,
                confirm_timeout=self._timeout,
                timeout=self._timeout,
                retry=False,
            )
        except exceptions.MessageNacked:
            return Retry("the broker refused it (basic.nack): is a queue full?", Scope.MESSAGE)
        except (TypeError, ValueError, exceptions.FrameSyntaxError) as error:
            return Reject(f"kombu cannot send it: {_told(error)}")
        return Sent(routed=not self._returned if self._confirms else None)

    def _open_channel(self) -> None:
        self._producer = kombu.Producer(
            self._connection.channel(), auto_declare=False, on_return=self._on_return
        )

    def _reopen_channel(self) -> None:
        try:
            self._open_channel()
        except self._faults as error:
            raise ConnectionError(_told(error)) from error

    @property
    def _faults(self) -> tuple[type[BaseException], ...]:
        connection = self._connection
        return (*connection.connection_errors, *connection.channel_errors, OSError)

    def _on_return(self, *_: object) -> None:
        # One message is on its way at a time.
        self._returned = True


def _result_of(error: exceptions.ChannelError) -> Result:
    code = error.reply_code
    if code in {_FORBIDDEN, _MISSING}:
        return Retry(f"the broker refused it: {_told(error)}", Scope.TOPIC)
    if code == _REFUSED:
        return Reject(f"the broker refused it: {_told(error)}")
    return Retry(f"the broker refused it: {_told(error)}", Scope.MESSAGE)


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__
