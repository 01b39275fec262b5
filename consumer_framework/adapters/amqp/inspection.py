# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at the broker for ``fm-consumer check`` as an instance would, and changes nothing."""

from __future__ import annotations

import logging
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pika
from fedora_messaging.exceptions import BadDeclaration
from fedora_messaging.twisted.service import FedoraMessagingServiceV2
from pika import exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorException,
    AMQPConnectorStackTimeout,
)

from consumer_framework.core.errors import ExitCode, Fault

from . import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

    from consumer_framework.settings import Address, Binding, Queue, Settings

# Seconds, for each of: the connection with its handshake; one answer on it.
TIMEOUT = 15.0


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue of the configuration.

    Attributes:
        name: Its name in the configuration.
        exists: Whether the broker has it.
        messages: How many messages wait in it.
        consumers: How many consumers it has already.
        locked: Whether another connection has it exclusively.
        fault: The fault that an instance would end with because of it.
    """

    name: str
    exists: bool = False
    messages: int = 0
    consumers: int = 0
    locked: bool = False
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class BrokerView:
    """The broker, as far as a client sees it.

    Attributes:
        host: The broker as ``HOST:PORT``.
        product: Its own name for its product.
        version: Its version, as text.
        vhost: The virtual host of the queues.
        cluster: The name of the cluster that it is a member of.
        queues: The queues of the configuration that have a name.
        faults: The faults that an instance would end with because of bindings.
    """

    host: str
    product: str
    version: str
    vhost: str
    cluster: str = ""
    queues: tuple[QueueView, ...] = ()
    faults: tuple[Fault, ...] = ()


class UnreachableError(Fault):
    """No broker answers now; an instance would wait for one, or use another one."""


def inspect(settings: Settings, address: Address) -> BrokerView:
    """Connect as an instance with *settings* would, and look at its queues and exchanges.

    Queues and exchanges are declared passively. A queue that exists is then declared with the
    properties of the file, as the instance does: that changes nothing, and the broker says whether
    they are those that it has.

    Args:
        settings: Loaded, so that fedora-messaging has the URL and TLS.
        address: Where the broker is.

    Raises:
        UnreachableError: There is no connection.
        Fault: The broker refuses one.
    """
    parameters = parameters_of(address)
    host = str(address)
    with quiet_pika():
        try:
            connection = connect(parameters, host)
        except UnreachableError as error:
            cure = "an instance would wait for it; check amqp_url, and the network between"
            raise UnreachableError(error.exit_code, f"{error}; {cure}") from error
        try:
            return _look(connection, settings, host, parameters.virtual_host)
        except exceptions.AMQPConnectionError as error:
            raise faults.connection_fault(error, host) from error
        finally:
            if connection.is_open:
                connection.close()


def parameters_of(address: Address) -> pika.connection.Parameters:
    """Return the parameters of a connection to *address*, as fedora-messaging is configured."""
    # Upstream's service makes parameters of URL, TLS and client properties.
    parameters = FedoraMessagingServiceV2()._parameters  # noqa: SLF001 -- see connection.py
    parameters.host, parameters.port = address.name, address.port
    parameters.connection_attempts = 1
    parameters.socket_timeout = parameters.stack_timeout = TIMEOUT
    parameters.blocked_connection_timeout = TIMEOUT
    if parameters.ssl_options is not None:
        # Python 3.13 sets these, and Twisted, by which an instance connects, does not.
        parameters.ssl_options.server_hostname = address.name
        strict = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        parameters.ssl_options.context.verify_flags &= ~strict
    return parameters


@contextmanager
def quiet_pika() -> Iterator[None]:
    """Keep pika from logging: it logs each failure, with tracebacks, and raises it too."""
    logger = logging.getLogger("pika")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def connect(parameters: pika.connection.Parameters, host: str) -> BlockingConnection:
    """Connect.

    Args:
        parameters: The return value of :func:`parameters_of`.
        host: The broker, for errors.

    Raises:
        UnreachableError: There is no connection.
        Fault: The broker refuses one.
    """
    heard: list[bytes] = []

    class Listening(pika.SelectConnection):
        def _on_data_available(self, data_in: bytes) -> None:
            heard[:] = [data_in[:1]]
            super()._on_data_available(data_in)

    made_of: Any = Listening
    try:
        return pika.BlockingConnection(parameters, _impl_class=made_of)
    except (exceptions.AMQPError, AMQPConnectorException, OSError) as error:
        cause = _root(error)
        # pika takes an end for an answer.
        is_end = isinstance(cause, exceptions.IncompatibleProtocolError) and not heard
        if is_end or faults.is_hang_up(cause):
            cause = faults.HungUpError(faults.tls_words(cause))
        if isinstance(cause, exceptions.AMQPError | ssl.SSLError) or faults.tls_words(cause):
            # There is a listener, and it refuses: an instance ends with that.
            raise faults.handshake_fault(cause, host, _words(cause)) from error
        what = f"the broker at {host} cannot be reached: {_words(cause)}"
        raise UnreachableError(ExitCode.CONNECTION, what) from error


def _root(error: BaseException) -> BaseException:
    """Return the error that pika wrapped into others, some of which have no words."""
    while True:
        wrapped = [e for e in (*_parts(error), error.__cause__) if isinstance(e, BaseException)]
        if not wrapped or faults.is_known(error):
            return error
        error = wrapped[-1]


def _parts(error: BaseException) -> tuple[object, ...]:
    return (*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args)


def _words(error: BaseException) -> str:
    if isinstance(error, AMQPConnectorStackTimeout):
        return f"no answer to the handshake within {TIMEOUT:.0f} s"
    if isinstance(error, ssl.SSLError):
        detail = getattr(error, "verify_message", "")
        known = ": ".join(filter(None, (detail, faults.tls_words(error))))
        return f"TLS: {known or error.reason or error}"
    if isinstance(error, OSError) and error.strerror and not faults.is_known(error):
        return error.strerror
    return faults.one_line(error)


def _look(connection: BlockingConnection, settings: Settings, host: str, vhost: str) -> BrokerView:
    properties: Any = connection._impl.server_properties  # noqa: SLF001 -- nothing else has it
    named = [(name, queue) for name, queue in settings.queues.items() if name]
    return BrokerView(
        host=host,
        product=text(properties.get("product"), "AMQP broker"),
        version=text(properties.get("version"), ""),
        vhost=vhost,
        cluster=text(properties.get("cluster_name"), ""),
        queues=tuple(_queue(connection, name, queue, settings) for name, queue in named),
        faults=tuple(_binding_faults(connection, settings.bindings)),
    )


def text(value: Any, default: str) -> str:
    """Return the broker's value as text, or *default* where it gives none."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else default


def _queue(
    connection: BlockingConnection, name: str, queue: Queue, settings: Settings
) -> QueueView:
    passive = settings.passive_declares if queue.passive is None else queue.passive
    found = _ask(connection, lambda channel: channel.queue_declare(name, passive=True))
    if isinstance(found, exceptions.ChannelClosed):
        if faults.reply_code(found) == faults.RESOURCE_LOCKED:
            return QueueView(name, exists=True, locked=True)
        missing = faults.reply_code(found) == faults.NOT_FOUND and not passive
        return QueueView(name, fault=None if missing else _queue_fault(name, found))
    fault = None if passive else _mismatch(connection, name, queue)
    counts = found.method
    return QueueView(name, True, counts.message_count, counts.consumer_count, fault=fault)  # noqa: FBT003 -- exists


def _mismatch(connection: BlockingConnection, name: str, queue: Queue) -> Fault | None:
    answer = _ask(
        connection,
        lambda channel: channel.queue_declare(
            name,
            durable=queue.durable,
            exclusive=queue.exclusive,
            auto_delete=queue.auto_delete,
            arguments=queue.arguments,
        ),
    )
    refused = isinstance(answer, exceptions.ChannelClosed)
    return _queue_fault(name, answer) if refused else None


def _queue_fault(name: str, error: exceptions.ChannelClosed) -> Fault:
    return faults.declaration_fault(BadDeclaration("queue", {"queue": name}, error))


def _binding_faults(connection: BlockingConnection, bindings: list[Binding]) -> Iterator[Fault]:
    """Yield a fault for each refused exchange; the default one exists, and takes no bindings."""
    answers: dict[str, Any] = {}
    for binding in bindings:
        exchange = binding.exchange
        if exchange and exchange not in answers:
            answers[exchange] = _exchange(connection, exchange)
        answer = answers.get(exchange)
        if isinstance(answer, exceptions.ChannelClosed):
            described = {
                "queue": binding.queue,
                "exchange": exchange,
                "routing_key": ", ".join(binding.routing_keys),
            }
            yield faults.declaration_fault(BadDeclaration("binding", described, answer))


def _exchange(connection: BlockingConnection, name: str) -> Any:
    return _ask(connection, lambda channel: channel.exchange_declare(name, passive=True))


def _ask(connection: BlockingConnection, question: Callable[[BlockingChannel], Any]) -> Any:
    """Ask on a channel of its own: the broker closes it to say no.

    Returns:
        The answer, or the error.
    """
    channel = connection.channel()
    try:
        return question(channel)
    except exceptions.ChannelClosedByBroker as error:
        return error
    finally:
        if channel.is_open:
            channel.close()
