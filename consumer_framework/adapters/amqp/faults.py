# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts refusals of the broker, and of OpenSSL, into one line each, with a cure.

An error is a refusal for good, or it passes by itself. The functions ``..._fault`` make the
:class:`.Fault` that an instance ends with. The functions ``is_...`` tell the kinds of errors apart.
:func:`one_line` has the words of any error.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any

import pika.exceptions
from fedora_messaging.exceptions import ConnectionException
from twisted.internet import defer
from twisted.internet import error as twisted_error

from consumer_framework.core.errors import ExitCode, Fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedora_messaging.exceptions import BadDeclaration

# Reply codes (AMQP 0-9-1, section 1.2).
ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406

INTERNAL_ERROR = 541

# CONNECTION_FORCED: an operator's doing. INTERNAL_ERROR: a virtual host that is down, for one.
_PASSING = frozenset({320, INTERNAL_ERROR})
# The beginning of RabbitMQ's text, with the same code, for a feature that it no longer permits.
_DEPRECATED = re.compile(r"Feature `(\w+)` is deprecated")
# Frame, syntax, command, channel and unexpected-frame errors are defects of a client; NOT_ALLOWED
# and NOT_IMPLEMENTED are settings that this broker does not take (prefetch_size, for one).
_PERMANENT = frozenset({501, 502, 503, 504, 505, 530, 540})

# The errors of a call that waits for an answer on a connection that ends.
CONNECTION_GONE = (
    ConnectionException,
    defer.CancelledError,
    pika.exceptions.AMQPConnectionError,
    pika.exceptions.ChannelWrongStateError,
    twisted_error.ConnectionClosed,
)

# The ends of a connection that nobody gives a reason for.
_HANG_UPS = (twisted_error.ConnectionClosed, pika.exceptions.StreamLostError)
_TLS_HANG_UPS = ("unexpected eof while reading", "eof occurred in violation of protocol")


class QueueTakenError(Exception):
    """Another connection, or consumer, has the queue for itself: that passes.

    Args:
        queue: The broker's name of the queue.
        reason: The broker's.
    """

    def __init__(self, queue: str, reason: str) -> None:
        super().__init__(f'waiting for the queue "{queue}", which another one has: {reason}')


class HungUpError(ConnectionError):
    """The connection ended before the AMQP handshake was through, and nobody said why."""

    def __init__(self, ended: str = "") -> None:
        ended = ended or "it ended the connection before the handshake was through"
        cause = "it starts or stops, or is a balancer without a broker behind it"
        super().__init__(f"{ended}; {cause}")


# Faults.

_CURES = {
    ("queue", ACCESS_REFUSED): "set passive_declares = true if the queue exists already, "
    "or ask the broker's administrators for the right to configure it",
    ("queue", NOT_FOUND): "create it on the broker, or set passive_declares = false",
    ("queue", RESOURCE_LOCKED): "stop the other connection that has it exclusively",
    ("queue", PRECONDITION_FAILED): "it exists with other properties: "
    "make its table under [queues] match, or delete it on the broker",
    ("binding", ACCESS_REFUSED): "ask the broker's administrators for the right to bind",
    ("binding", NOT_FOUND): "create the exchange on the broker, or name another one",
}


def declaration_fault(error: BadDeclaration) -> Fault:
    """Return the fault for a queue or a binding that the broker refused."""
    kind = str(error.obj_type)
    description: Any = error.description
    reason = one_line(error.reason)
    cure = _CURES.get((kind, reply_code(error.reason)), "see the broker's log")
    text = f"the broker refuses the {kind} {_name(kind, description)}: {reason}; {cure}"
    return Fault(ExitCode.BAD_DECLARATION, text)


def _name(kind: str, description: Mapping[str, Any]) -> str:
    queue = f'"{description["queue"]}"'
    if kind == "binding":
        key, exchange = description["routing_key"], description["exchange"]
        return f'of queue {queue} to exchange "{exchange}" with "{key}"'
    return queue


def consume_fault(error: pika.exceptions.ChannelClosed, queue: str) -> Fault | QueueTakenError:
    """Return the fault for a refused ``basic.consume``, or the reason to try it again."""
    reason = one_line(error)
    if is_in_use(error):
        return QueueTakenError(queue, reason)
    if reply_code(error) == NOT_FOUND:
        text = f'the queue "{queue}" is gone: {reason}; create it on the broker'
        return Fault(ExitCode.BAD_DECLARATION, text)
    text = (
        f'the broker does not let this user consume from the queue "{queue}": {reason}; '
        "ask its administrators for the right to read it"
    )
    return Fault(ExitCode.PERMISSION, text)


def canceled_fault(queue: str) -> Fault:
    """Return the fault for a consumer that the broker canceled because its queue is gone."""
    text = f'the broker canceled the consumer: the queue "{queue}" was deleted; create it again'
    return Fault(ExitCode.CANCELED, text)


def handshake_fault(error: BaseException, host: str, words: str = "") -> Fault:
    """Return the fault for a broker that does not accept the first connection.

    Args:
        error: The reason.
        host: The broker as ``HOST:PORT``.
        words: The reason in words, where they say more than those of :func:`one_line`.
    """
    text = f"the broker at {host} does not accept the connection: {words or one_line(error)}"
    return Fault(ExitCode.CONNECTION, f"{text}; check user, password, vhost and [tls]")


def connection_fault(error: object, host: str) -> Fault:
    """Return the fault for a connection that the broker closed because of this client's doing."""
    if feature := refused_feature(error):
        text = f"the broker at {host} does not permit its deprecated feature {feature}"
        setting = f"deprecated_features.permit.{feature} = true"
        cure = f"{_FEATURE_CURES.get(feature, '')}let its administrators set {setting}"
        return Fault(ExitCode.BAD_DECLARATION, f"{text}: {one_line(error)}; {cure}")
    text = f"the broker at {host} closed the connection for good: {one_line(error)}"
    return Fault(ExitCode.CONNECTION, f"{text}; check [qos], [queues] and [[bindings]]")


# The key that avoids a feature (https://www.rabbitmq.com/docs/deprecated-features).
_FEATURE_CURES = {
    "transient_nonexcl_queues": "set durable = true, or exclusive = true, for each of [queues], or "
}


# Kinds.


def reply_code(error: object) -> int:
    """Return the AMQP reply code in *error*, 0 where it has none."""
    code = getattr(error, "reply_code", 0)
    return code if isinstance(code, int) else 0


def is_permanent(error: object) -> bool:
    """Say whether the broker closed the connection for something it will refuse again."""
    return reply_code(error) in _PERMANENT or refused_feature(error) != ""


def refused_feature(error: object) -> str:
    """Return the deprecated feature that the broker does not permit; "" for another error."""
    found = _DEPRECATED.search(str(getattr(error, "reply_text", "")))
    return found[1] if found and reply_code(error) == INTERNAL_ERROR else ""


def is_locked(error: BadDeclaration) -> bool:
    """Say whether another connection has the queue: after a cut, perhaps our own former one."""
    return reply_code(error.reason) == RESOURCE_LOCKED


def is_in_use(error: object) -> bool:
    """Say whether the broker refuses a consumer because another one has the queue for itself."""
    return reply_code(error) == ACCESS_REFUSED and "exclusive use" in one_line(error)


def is_hang_up(error: object) -> bool:
    """Say whether the other side ended a TLS connection without a reason."""
    return _openssl_reason(error).endswith(_TLS_HANG_UPS)


def handshake_error(error: BaseException, *, may_hang_up: bool) -> BaseException:
    """Return the error to report for a handshake that ended with *error*.

    Args:
        error: Twisted's or pika's error.
        may_hang_up: Whether the broker is one that ends the connection to refuse a login.
    """
    if not isinstance(error, _HANG_UPS) and not is_hang_up(error):
        return error
    if may_hang_up:
        return pika.exceptions.ProbableAuthenticationError("the broker ended the connection")
    return HungUpError(tls_words(error))


def is_refusal(error: object) -> bool:
    """Say whether the broker does not want us, and nothing but a change of settings helps.

    A broker that does not answer, shuts down, hangs up or has an error of its own has not refused
    anything; neither has a balancer without a broker behind it.
    """
    is_passing = isinstance(error, (TimeoutError, HungUpError)) or reply_code(error) in _PASSING
    return not is_passing


# Words.

_WORDS: tuple[tuple[type, str], ...] = (
    (pika.exceptions.AMQPHeartbeatTimeout, "the broker sent no heartbeat"),
    (pika.exceptions.ProbableAuthenticationError, "authentication failed"),
    (pika.exceptions.ProbableAccessDeniedError, "access to the vhost was refused"),
    (pika.exceptions.IncompatibleProtocolError, "it does not speak AMQP 0-9-1"),
    (pika.exceptions.StreamLostError, "the broker closed the connection"),
    (twisted_error.ConnectionDone, "the broker closed the connection"),
    (twisted_error.ConnectionLost, "the connection was cut"),
    # Their own texts say the same twice, with a number in between.
    (twisted_error.ConnectionRefusedError, "connection refused"),
    (ConnectionRefusedError, "connection refused"),
    (twisted_error.NoRouteError, "no route to host"),
    (twisted_error.TCPTimedOutError, "the connection attempt timed out"),
    (twisted_error.TimeoutError, "the connection attempt timed out"),
)

# By the end of OpenSSL's reason; alerts are those of RFC 8446, section 6.2.
_TLS_WORDS = {
    "certificate verify failed": "the broker's certificate is refused: tls.ca_cert does not vouch "
    "for it, or it has ended",
    "alert certificate required": "the broker demands a client certificate: give tls.certfile and "
    "tls.keyfile",
    "alert handshake failure": "the broker refuses TLS with this client: it may demand a client "
    "certificate (tls.certfile and tls.keyfile)",
    "alert certificate expired": "the broker refuses the client certificate of tls.certfile: it "
    "has ended",
    "alert certificate revoked": "the broker refuses the client certificate of tls.certfile: it "
    "is revoked",
    "alert unknown ca": "the broker refuses the client certificate of tls.certfile: it does not "
    "know who issued it",
    "alert bad certificate": "the broker refuses the client certificate of tls.certfile",
    "alert certificate unknown": "the broker refuses the client certificate of tls.certfile",
    "alert unsupported certificate": "the broker refuses the client certificate of tls.certfile",
    # An alert may be lost with the connection.
    **dict.fromkeys(_TLS_HANG_UPS, "the broker ended the TLS connection without a word"),
    "wrong version number": "the port does not speak TLS: is it the one for amqp://?",
}


def one_line(error: object) -> str:
    """Return *error* in words that a log reader knows."""
    if code := reply_code(error):
        return " ".join(f"{code} {getattr(error, 'reply_text', '')}".split())
    if of_tls := tls_words(error):
        return of_tls
    words = (text for kind, text in _WORDS if isinstance(error, kind))
    return next(words, " ".join(str(error).split()) or type(error).__name__)


def is_known(error: object) -> bool:
    """Say whether :func:`one_line` has better words than the error's own text."""
    has_words = tls_words(error) or any(isinstance(error, kind) for kind, _ in _WORDS)
    return reply_code(error) > 0 or bool(has_words)


def tls_words(error: object) -> str:
    """Return the reason why TLS failed; "" for errors not of TLS, and for unknown reasons."""
    reason = _openssl_reason(error)
    return next((text for end, text in _TLS_WORDS.items() if reason.endswith(end)), "")


def _openssl_reason(error: object) -> str:
    match error:
        case BaseException(args=[[*_, (_, _, str(reason))]]):
            # pyOpenSSL's: a list of (library, function, reason).
            return reason
        case ssl.SSLError(reason=str(reason)):
            return reason.lower().replace("_", " ")
    # pika keeps no more than the text of the error that it caught.
    found = re.search(r"\[SSL: ([A-Z0-9_]+)\]|(EOF occurred in violation of protocol)", str(error))
    return (found[1] or found[2]).lower().replace("_", " ") if found else ""
