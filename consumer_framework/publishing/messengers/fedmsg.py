# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger ``fedmsg``: the signed messages of fedmsg 1.1.7 over ZeroMQ, by pyzmq.

The package fedmsg is not needed. A message has two frames, the topic and a JSON object::

    {"topic": …, "msg": body, "msg_id": "YEAR-ID", "timestamp": …, "i": …, "username": …,
     "headers": …, "crypto": "x509", "signature": …, "certificate": …}

- ``crypto`` is part of the signed text, ``signature`` and ``certificate`` are not. The text is
  compact JSON with sorted keys; the signature is RSA with PKCS #1 v1.5 and SHA-1; both are base64
  in lines of 76 characters (``fedmsg.crypto.x509_ng.sign``).
- ``msg_id`` and ``timestamp`` are those of the publishing, so a message that is sent again has the
  same ones.
- ``headers`` are those of fedora-messaging, with severity and message class, so that a bridge to
  AMQP can restore the message. Fedora's own (``fedmsg_migration_tools``) makes a message of the
  class ``base.message`` with severity INFO of each. fedmsg has no priorities.

**Nothing acknowledges.** :class:`.Sent` means that the message was handed over to ZeroMQ, which
sends it to those that subscribe at that moment. ZeroMQ keeps up to 1000 messages for each
subscriber in this process; they are lost if the process is killed or the subscriber goes away.

The socket is an XPUB, which is a PUB for its peers and tells this side of subscriptions. That
helps against three silent losses of a PUB:

- A message without a subscription is told as not routed, so ``unroutable = "retry"`` keeps it.
- A PUB that connects drops everything until its peer has subscribed. Here the connection is made
  when the peer has subscribed, and ends with its subscription.
- A PUB drops the messages that a slow subscriber has no room for. Here the messenger waits for the
  subscriber up to :attr:`.Endpoints.timeout`; after that only the slow one loses messages, with a
  line in the log.

Subscribers that connect need a moment after this side has bound its port: see ``post_init_sleep``.
"""

from __future__ import annotations

import base64
import datetime as dt
import getpass
import ipaddress
import json
import logging
import os
import socket
import time
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import zmq
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from consumer_framework.core.errors import ConfigurationError, Problem

from . import EVERYTHING, Endpoints, Feature, Reject, Sent
from .failover import Failover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Result

_log = logging.getLogger(__name__)
_PATH = "consumer_config.framework.outbox"
# Messages that ZeroMQ keeps for each subscriber.
_HIGH_WATER_MARK = 1000
# The most milliseconds that close() waits for the peers to take the last messages.
_LINGER = 1000
# fedmsg's own values: `zmq_tcp_keepalive` and its relatives.
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 60,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
# A subscriber with fedmsg's settings tries to connect at least once a second.
_JOIN = 1.5


class Fedmsg(Failover):
    """Hands messages over to ZeroMQ, signed as fedmsg signs them.

    Args:
        endpoints: URLs ``tcp://HOST:PORT`` or ``ipc://PATH``. Without ``active`` the first one that
            is free is bound, as fedmsg does; a host that is no address of this machine's means
            all addresses. The certificate and its RSA key sign the messages.
        active: Connect to a ``fedmsg-relay`` (its ``relay_inbound``) and do not bind. The first
            relay that answers gets the messages.
        sign_messages: False sends messages without a signature, which fedmsg's subscribers refuse
            by default.
        post_init_sleep: Seconds to wait for the subscribers after a port was bound.
        username: The name in each message; None for the user of this process.

    Raises:
        ConfigurationError: A URL cannot be used, or there is no certificate to sign with.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        active: bool = False,
        sign_messages: bool = True,
        post_init_sleep: float = _JOIN,
        username: str | None = None,
    ) -> None:
        super().__init__(endpoints)
        self._active = active
        self._sign_messages = sign_messages
        self._post_init_sleep = post_init_sleep
        self._username = username or _user()
        self._count = 0
        for url in endpoints.urls:
            _check(url)
        if sign_messages:
            try:
                _Signer(endpoints)
            except (OSError, ValueError) as error:
                cure = (
                    "name the certificate and its RSA key there, or set options.sign_messages = "
                    "false in [consumer_config.framework.outbox]"
                )
                raise ConfigurationError(Problem("tls", str(error), cure)) from None

    @property
    def features(self) -> frozenset[Feature]:
        """All but a priority and confirmations: nothing acknowledges a message."""
        return EVERYTHING - {Feature.PRIORITY, Feature.CONFIRMS}

    def connect(self, url: str) -> _Link:
        """Bind the endpoint at *url* and wait for subscribers, or connect to it.

        The certificate is read again.
        """
        try:
            signer = _Signer(self.endpoints) if self._sign_messages else None
        except ValueError as error:
            raise ConnectionError(str(error)) from error
        link = _Link(self, signer)
        try:
            link.connect(url) if self._active else link.bind(url, self._post_init_sleep)
        except BaseException:
            link.close()
            raise
        how = "connected to" if self._active else "bound to"
        _log.info("%s %s; messages are handed over, and nothing acknowledges them", how, url)
        return link

    def envelope(self, message: Outgoing) -> dict[str, Any]:
        """Return the JSON object of *message*, without a signature.

        Raises:
            ValueError: The body is no JSON.
        """
        self._count += 1
        year = time.gmtime(message.created).tm_year
        return {
            "topic": message.topic,
            "msg": json.loads(message.body),
            "msg_id": f"{year}-{message.id}",
            "timestamp": int(message.created),
            "i": self._count,
            "username": self._username,
            "headers": dict(message.headers),
        }


class _Signer:
    """A certificate and its key.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is missing in the configuration, or is of no use.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        names = {"certfile": endpoints.certfile, "keyfile": endpoints.keyfile}
        for name, path in names.items():
            if not path:
                raise ValueError(f"{name} is not set: fedmsg signs its messages")
        with open(str(endpoints.certfile), "rb") as file:  # noqa: PTH123 -- a path as text
            self._certificate = _loaded(file.name, x509.load_pem_x509_certificate, file.read())
        with open(str(endpoints.keyfile), "rb") as file:  # noqa: PTH123 -- likewise
            read = serialization.load_pem_private_key
            key = _loaded(file.name, read, file.read(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError(f"{endpoints.keyfile}: fedmsg signs with RSA, and this is another key")  # noqa: TRY004
        if key.public_key() != self._certificate.public_key():
            raise ValueError(f"{endpoints.keyfile} is not the key of {endpoints.certfile}")
        self._key = key
        text = self._certificate.public_bytes(serialization.Encoding.PEM)
        self._certificate_text = base64.encodebytes(text).decode()
        self.signed({})

    def fault(self) -> str | None:
        """Return the reason why subscribers refuse the certificate now, or None."""
        begin, end = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        if begin <= dt.datetime.now(dt.UTC) < end:
            return None
        return f"the certificate is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"

    def signed(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return *message* with the three fields of a signature.

        Raises:
            ValueError: This machine does not sign with SHA-1.
        """
        message = {**message, "crypto": "x509"}
        try:
            signature = self._key.sign(_compact(message), padding.PKCS1v15(), hashes.SHA1())  # noqa: S303
        except Exception as error:
            told = "does this machine's policy forbid SHA-1? (update-crypto-policies(8))"
            raise ValueError(f"cannot sign as fedmsg does: {error}; {told}") from error
        text = base64.encodebytes(signature).decode()
        return {**message, "signature": text, "certificate": self._certificate_text}


class _Link:
    """A bound or connected socket, and the subscriptions of its peers."""

    def __init__(self, messenger: Fedmsg, signer: _Signer | None) -> None:
        self._messenger = messenger
        self._signer = signer
        self._timeout = messenger.endpoints.timeout
        self._is_active = False
        self._is_slow = False
        self._subscriptions: set[bytes] = set()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        for option, value in _KEEPALIVE.items():
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, _LINGER)
        # A message for a full pipe is an error, and not dropped.
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        # Also where nobody closes the link: the context waits for ever for a socket that is open,
        # and the garbage collector may come to the context first.
        self._end = weakref.finalize(self, _ended, self._socket, self._context)

    def bind(self, url: str, wait: float) -> None:
        """Bind *url*, and wait for the subscribers that connect."""
        try:
            if url.startswith("tcp:"):
                # ZeroMQ would look for a network interface of that name, by a netlink socket. Where
                # that is forbidden, as in a unit with RestrictAddressFamilies=, it aborts.
                self._socket.setsockopt(zmq.USE_FD, _listening(url))
            self._socket.bind(url)
        except (OSError, zmq.ZMQError) as error:
            raise ConnectionError(f"cannot be bound: {error.strerror}") from error
        time.sleep(wait)

    def connect(self, url: str) -> None:
        """Connect to *url*, and wait until its relay has subscribed."""
        self._is_active = True
        self._socket.setsockopt(zmq.IPV6, "[" in url)
        # Without a connection there is no pipe: its end is seen, and nothing waits in it unsent.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        try:
            self._socket.connect(url)
        except zmq.ZMQError as error:
            raise ConnectionError(f"cannot be connected to: {error}") from error
        self._socket.poll(int(self._timeout * 1000), zmq.POLLIN)
        self._require_relay()

    def send(self, batch: Sequence[tuple[int, Outgoing]], fates: dict[int, Result]) -> None:
        """Hand *batch* over; see :class:`.failover.Link`."""
        if self._signer is not None and (fault := self._signer.fault()):
            raise ConnectionError(fault)
        deadline = time.monotonic() + self._timeout
        for number, message in batch:
            try:
                frames = self._frames(message)
            except (ValueError, RecursionError) as error:
                fates[number] = Reject(f"fedmsg cannot send it: {error}")
                continue
            if self._is_active:
                self._require_relay()
            is_routed = self._is_subscribed(frames[0])
            self._hand_over(frames, deadline)
            _log.debug("message %s (%s) is handed over", message.id, message.topic)
            fates[number] = Sent(routed=is_routed)

    def close(self) -> None:
        """Close the socket, after its last messages or a second."""
        self._end()

    def _frames(self, message: Outgoing) -> list[bytes]:
        envelope = self._messenger.envelope(message)
        if self._signer is not None:
            envelope = self._signer.signed(envelope)
        return [message.topic.encode(), _compact(envelope)]

    def _hand_over(self, frames: list[bytes], deadline: float) -> None:
        """Give *frames* to each subscriber.

        Raises:
            ConnectionError: The relay takes none.
        """
        wait = 0.0 if self._is_slow else max(deadline - time.monotonic(), 0.0)
        self._socket.setsockopt(zmq.SNDTIMEO, int(wait * 1000))
        try:
            self._socket.send_multipart(frames)
        except zmq.Again:
            if self._is_active:
                raise ConnectionError("it takes no messages: no answer in time") from None
            self._drop_for_slow(frames)
        else:
            self._is_slow = False

    def _drop_for_slow(self, frames: list[bytes]) -> None:
        if not self._is_slow:
            text = "A subscriber of fedmsg has taken nothing for %s s, and loses messages now"
            _log.warning(text, self._timeout)
        self._is_slow = True
        self._socket.setsockopt(zmq.XPUB_NODROP, 0)
        try:
            self._socket.send_multipart(frames)
        finally:
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)

    def _require_relay(self) -> None:
        self._read_subscriptions()
        if not self._subscriptions:
            raise ConnectionError("no fedmsg-relay has subscribed")

    def _is_subscribed(self, topic: bytes) -> bool:
        self._read_subscriptions()
        return any(topic[:length] in self._subscriptions for length in range(len(topic) + 1))

    def _read_subscriptions(self) -> None:
        """Take note of the first subscription of each prefix, and of the end of the last one."""
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            event: bytes = self._socket.recv(zmq.NOBLOCK)
            if event[:1] == b"\1":
                self._subscriptions.add(event[1:])
            elif event[:1] == b"\0":
                self._subscriptions.discard(event[1:])


def _ended(link: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]]) -> None:
    link.close()
    context.term()


def _compact(message: dict[str, Any]) -> bytes:
    """Return the text that fedmsg signs, and sends (``fedmsg.encoding.dumps``)."""
    return json.dumps(message, sort_keys=True, separators=(",", ":")).encode()


def _loaded(path: str, load: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return load(*arguments, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is of no use: {error}") from error


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_right = bool(parts.scheme == "ipc" and (parts.netloc or parts.path)) or bool(
            parts.scheme == "tcp" and parts.hostname and parts.port
        )
    except ValueError:
        is_right = False
    if not is_right:
        what = f'"{url}" is no endpoint of fedmsg'
        cure = "write it as tcp://HOST:PORT"
        raise ConfigurationError(Problem(f"{_PATH}.endpoints", what, cure))


def _listening(url: str) -> int:
    """Return the descriptor of a socket that listens at *url*.

    A host that is no address means all addresses: so does fedmsg, which takes the same URL for its
    subscribers.
    """
    parts = urlsplit(url)
    try:
        host = str(ipaddress.ip_address(parts.hostname or ""))
    except ValueError:
        host = ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, parts.port or 0), family=family)
    made.setblocking(False)  # noqa: FBT003 -- its only parameter
    return made.detach()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        return str(os.getuid())
