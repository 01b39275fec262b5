# SPDX-License-Identifier: GPL-2.0-or-later
"""The messenger ``fedora``: :func:`fedora_messaging.api.publish`, one message after the other.

It connects as the configuration of fedora-messaging says, and its signals are sent. It is for
programs that depend on these; ``amqp`` sends the same data ten times as fast.

One thread of this module makes all calls of a process: if two threads publish to a broker that does
not answer, fedora-messaging reports success for a message that it lost. It runs its own reactor in
a further thread, so a process whose reactor runs already cannot use this messenger.

fedora-messaging does not tell that no queue got a message. It repeats a message for a missing
exchange until the time is over, so that a missing exchange looks like an endpoint that is away.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pika
from fedora_messaging import api, config, exceptions
from fedora_messaging.message import Message

from consumer_framework.core.errors import ConfigurationError, Problem

from . import EVERYTHING, Feature, Reject, Retry, Scope, Sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Endpoints, Result


class _Stored(Message):
    """A message that was validated and serialised before it was stored."""

    stored: Outgoing

    @property
    def _encoded_routing_key(self) -> str:
        return self.stored.topic  # it has the topic prefix already

    @property
    def _encoded_body(self) -> bytes:
        return self.stored.body


class _Publisher:
    """The only thread of this process that calls fedora-messaging."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fedora-messenger")


_publisher: _Publisher | None = None
_guard = threading.Lock()


def _publisher_of_process() -> _Publisher:
    global _publisher  # noqa: PLW0603 -- fedora-messaging has one connection for a process
    with _guard:
        if _publisher is None:
            _publisher = _Publisher()
        return _publisher


class Fedora:
    """Sends with :func:`fedora_messaging.api.publish`.

    Args:
        endpoints: At most one URL. It becomes fedora-messaging's ``amqp_url``, if nothing was
            published before in this process; the certificates are those of its table ``tls``.

    Raises:
        ConfigurationError: There is more than one URL.
    """

    features: frozenset[Feature] = EVERYTHING - {Feature.ROUTED}

    def __init__(self, endpoints: Endpoints) -> None:
        if len(endpoints.urls) > 1:
            path = "consumer_config.framework.outbox.endpoints"
            what = 'the messenger "fedora" connects to one endpoint'
            raise ConfigurationError(Problem(path, what, 'name one, or use the messenger "amqp"'))
        self._endpoints = endpoints

    def open(self) -> None:
        """Start the thread. fedora-messaging connects with the first message.

        Raises:
            ConnectionError: The process was forked after the thread was started; the reactor of
                fedora-messaging does not run in it.
        """
        if _publisher_of_process().pid != os.getpid():
            raise ConnectionError("the process was forked after its first message")
        if not config.conf.loaded:
            config.conf.load_config()  # it would replace the URL with the first access
        if self._endpoints.urls:
            config.conf["amqp_url"] = self._endpoints.urls[0]

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Publish the messages of *batch* one by one.

        The first one that the broker does not answer ends the batch.
        """
        try:
            self.open()
        except ConnectionError as error:
            return [Retry(str(error)) for _ in batch]
        return _publisher_of_process().pool.submit(self._publish_all, batch).result()

    def close(self) -> None:
        """Do nothing: the connection of fedora-messaging lasts as long as the process."""

    def _publish_all(self, batch: Sequence[Outgoing]) -> list[Result]:
        results: list[Result] = []
        for message in batch:
            result = self._publish(message)
            results.append(result)
            if isinstance(result, Retry) and result.scope is Scope.ENDPOINT:
                break
        return results + results[-1:] * (len(batch) - len(results))

    def _publish(self, message: Outgoing) -> Result:
        timeout = self._endpoints.timeout
        try:
            api.publish(_restored(message), message.exchange, timeout)  # type: ignore[arg-type]
        except exceptions.PublishForbidden as error:
            return Retry(f"the broker refused it: {error}", Scope.TOPIC)
        except exceptions.PublishReturned as error:
            return Retry(f"the broker refused it: {error}", Scope.MESSAGE)
        except exceptions.BaseException as error:
            return Retry(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 -- faults of the socket come as they are
            return _result_of(error)
        return Sent()


def _result_of(error: Exception) -> Result:
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, (ValueError, TypeError, AssertionError)):
        return Reject(f"fedora-messaging cannot send it: {told}")
    return Retry(told)


def _restored(message: Outgoing) -> _Stored:
    properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        headers=dict(message.headers),
        message_id=message.id,
        priority=message.priority,
    )
    restored = _Stored(topic=message.topic, properties=properties)
    restored.stored = message
    return restored
