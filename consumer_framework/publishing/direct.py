# SPDX-License-Identifier: GPL-2.0-or-later
"""Send at once, without an outbox, and wait for the broker: for scripts and for people.

::

    with publishing.sender() as send:
        send(message)               # returns when the broker has it
        send.many(messages)         # the same for many, in windows: ten times as fast

Nothing is stored: a message that the broker does not confirm is the caller's, who is told so by
:class:`SendError`. A program that must not lose messages when the broker is away uses the outbox.
"""

from __future__ import annotations

import random
import time
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from fedora_messaging import config as upstream_config

from consumer_framework.core.secrets import redact
from consumer_framework.settings import Unroutable, outbox_settings

from .message import Outgoing, PublishError, outgoing
from .messengers import EVERYTHING, Reject, Retry, Scope, Sent, configured, refusal
from .policy import ENDPOINT, Backoff, Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self

    from fedora_messaging.message import Message

    from consumer_framework.settings import OutboxSettings

    from .messengers import Messenger, Result

TIMEOUT = 30.0


class SendError(PublishError):
    """Messages were not sent: the broker refused them, or did not confirm them in time.

    Attributes:
        unsent: These messages, in their order. The broker has perhaps taken some of them, if the
            connection to it broke.
        is_final: True if one of them can never be sent as it is.
    """

    def __init__(self, text: str, unsent: Sequence[Outgoing], *, is_final: bool = False) -> None:
        super().__init__(text)
        self.unsent = list(unsent)
        self.is_final = is_final


class _Fault(NamedTuple):
    """The reason why a message was not sent.

    Attributes:
        lasts: True if another attempt now is of no use.
        is_final: True if it never is, because the message is at fault.
    """

    reason: str
    lasts: bool
    is_final: bool = False


class Sender:
    """Sends messages through a messenger at once, and waits until the broker has them.

    One thread uses it. As a context manager it closes the connection at the end.

    Args:
        messenger: The way to send. It is opened with the first message.
        settings: The table ``[consumer_config.framework.outbox]``: window, size, lossy, and the
            treatment of messages without a queue. ``unroutable = "dead"`` and ``"retry"`` refuse
            such a message.
        exchange: The exchange of messages that name none.
        topic_prefix: Text before each topic, joined with a dot.
        timeout: Seconds for which a message is tried again.
        backoff: The delays between the attempts.

    Attributes:
        sent: The number of messages that the broker has confirmed.
        unroutable: The number of those that no queue is bound for.
    """

    def __init__(  # noqa: PLR0913 -- each is a value of its own
        self,
        messenger: Messenger,
        settings: OutboxSettings,
        *,
        exchange: str = "amq.topic",
        topic_prefix: str = "",
        timeout: float = TIMEOUT,
        backoff: Backoff = ENDPOINT,
    ) -> None:
        self.sent = 0
        self.unroutable = 0
        self._messenger = messenger
        self._settings = settings
        self._policy = Policy.of(settings)
        self._exchange = exchange
        self._topic_prefix = topic_prefix
        self._timeout = timeout
        self._backoff = backoff

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """The host and port of the endpoint in use; ``""`` if the messenger does not tell."""
        return str(getattr(self._messenger, "endpoint", ""))

    def close(self) -> None:
        """Close the connection."""
        self._messenger.close()

    def open(self) -> None:
        """Connect now, and not with the first message.

        Raises:
            ConnectionError: No endpoint answers.
        """
        self._messenger.open()

    def __call__(self, message: Message, *, exchange: str | None = None) -> Outgoing:
        """Send *message*, and return it as it was sent.

        Args:
            message: An instance of any message class. It is not changed.
            exchange: The exchange; None for the one of the configuration.

        Raises:
            fedora_messaging.exceptions.ValidationError: It does not fit its schema.
            PublishError: It can never be sent.
            SendError: The broker did not confirm it.
        """
        prepared = self._prepared(message, exchange)
        self.send([prepared])
        return prepared

    def many(self, messages: Iterable[Message], *, exchange: str | None = None) -> int:
        """Send *messages* in their order, and return their number.

        They are taken and validated window by window, so an endless iterator takes no memory.

        Raises:
            fedora_messaging.exceptions.ValidationError: One does not fit its schema. Its window
                is not sent; :attr:`sent` tells the number of those that were.
            PublishError: Likewise, for one that can never be sent.
            SendError: The broker did not confirm all of a window.
        """
        source, count = iter(messages), 0
        while window := list(islice(source, self._settings.window)):
            self.send([self._prepared(message, exchange) for message in window])
            count += len(window)
        return count

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Send messages that were prepared before; at most a window at a time is on its way.

        A message with an ordering key waits for the one before it.

        Raises:
            SendError: The broker did not confirm all of them; those after a failure are not tried.
        """
        size = 1 if any(message.ordering_key for message in messages) else self._settings.window
        for start in range(0, len(messages), size):
            try:
                self._send_window(messages[start : start + size])
            except SendError as error:
                left = [*error.unsent, *messages[start + size :]]
                raise SendError(str(error), left, is_final=error.is_final) from error.__cause__

    def _prepared(self, message: Message, exchange: str | None) -> Outgoing:
        return outgoing(
            message,
            exchange=self._exchange if exchange is None else exchange,
            topic_prefix=self._topic_prefix,
            now=time.time(),
            max_body=self._settings.max_body,
        )

    def _send_window(self, window: Sequence[Outgoing]) -> None:
        deadline = time.monotonic() + self._timeout
        rest, attempts = list(window), 0
        while True:
            results = zip(rest, self._results(rest), strict=True)
            pairs = [(message, self._fault(message, result)) for message, result in results]
            failed = [(message, fault) for message, fault in pairs if fault is not None]
            if not failed:
                return
            attempts += 1
            rest = [message for message, _ in failed]
            delay = self._backoff.after(attempts, random.random())  # noqa: S311 -- no secret
            is_over = time.monotonic() + delay > deadline
            for message, fault in failed:
                if fault.lasts or is_over:
                    raise _error(message, fault, rest)
            time.sleep(delay)

    def _results(self, rest: Sequence[Outgoing]) -> Sequence[Result]:
        try:
            self._messenger.open()
        except ConnectionError as error:
            return [Retry(str(error)) for _ in rest]
        features = EVERYTHING if self._settings.lossy else self._messenger.features
        reasons = [refusal(message, features) for message in rest]
        if any(reasons):
            # None of them is sent: the caller mends them as a whole.
            cure = "lossy = true sends it nevertheless"
            return [Reject(f"{r}; {cure}") if r else Retry("not tried") for r in reasons]
        return self._messenger.send_many(rest)

    def _fault(self, message: Outgoing, result: Result) -> _Fault | None:
        """Count *message* if it was sent; otherwise return the fault."""
        match result:
            case Sent(routed):
                is_lost = routed is False
                self.unroutable += is_lost
                if is_lost and self._policy.unroutable_of(message.topic) is not Unroutable.ACCEPT:
                    return _Fault("no queue is bound for its topic", lasts=True)
                self.sent += 1
                return None
            case Reject(reason):
                return _Fault(reason, lasts=True, is_final=True)
            case Retry(reason, scope):
                return _Fault(reason, lasts=scope is Scope.TOPIC)


def _error(message: Outgoing, fault: _Fault, unsent: Sequence[Outgoing]) -> SendError:
    others = f", and {len(unsent) - 1} more" if len(unsent) > 1 else ""
    what = f"message {message.id} ({message.topic}) was not sent{others}"
    return SendError(f"{what}: {redact(fault.reason)}", unsent, is_final=fault.is_final)


def sender(conf: Path | str | None = None, *, timeout: float = TIMEOUT) -> Sender:
    """Return a sender for the brokers, and through the messenger, of a configuration file.

    Args:
        conf: The file of fedora-messaging; None for its usual one: ``$FEDORA_MESSAGING_CONF``, or
            ``/etc/fedora-messaging/config.toml``, or its defaults: the broker of this machine.
        timeout: Seconds for which a message is tried again.

    Raises:
        ConfigurationError: The file cannot be used.
        fedora_messaging.exceptions.ConfigurationException: Likewise.
    """
    document: Mapping[str, Any] = upstream_config.conf
    if conf is not None:
        document = upstream_config.LazyConfig()
        document.load_config(str(conf))
    return sender_of(document, outbox_settings(document), timeout)


def sender_of(document: Mapping[str, Any], settings: OutboxSettings, timeout: float) -> Sender:
    """Return a sender as a configuration that was read before describes it.

    Raises:
        ConfigurationError: Its messenger cannot be made.
    """
    return Sender(
        configured(document, settings),
        settings,
        exchange=document["publish_exchange"],
        topic_prefix=document["topic_prefix"],
        timeout=timeout,
    )
