# SPDX-License-Identifier: GPL-2.0-or-later
"""Let ``fedora_messaging.api.publish`` go another way than crochet's.

``api.publish`` calls ``crochet.setup()``, which would start a second reactor, and then
``_twisted_publish_wrapper``, whose result it waits for. It looks both names up in its module at
each call, and ``fedora_messaging.testing.mock_sends`` replaces both. :func:`replaced` does the
same: so it does not matter when or how the author's code imported ``publish``.

``api.twisted_publish`` sends by ``_twisted_service``: see :class:`OutboxService`.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from fedora_messaging import api
from fedora_messaging.exceptions import PublishException, ValidationError
from twisted.internet import defer
from twisted.python.failure import Failure

from .message import PublishError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedora_messaging.message import Message

    from .outbox import Outbox


class Eventual(Protocol):
    """The result of one publish: the part of crochet's EventualResult that upstream uses."""

    def wait(self, timeout: float) -> None:
        """Return once the message is published; raise the error of the publish.

        Raises:
            TimeoutError: It took longer than *timeout* seconds.
        """

    def cancel(self) -> None:
        """Try no longer."""

    def original_failure(self) -> Failure | None:
        """Return the error with its traceback, for the log."""


class Done(Eventual):
    """The result of a publish that is over.

    Args:
        error: Its error; None for a success.
    """

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error

    def wait(self, timeout: float) -> None:  # noqa: ARG002 -- upstream passes it by its name
        """Raise the error, if there is one."""
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Do nothing."""

    def original_failure(self) -> Failure | None:
        """Return the error."""
        return None if self._error is None else failure_of(self._error)


def failure_of(error: BaseException) -> Failure:
    """Return *error* as upstream logs it."""
    return Failure(error)  # type: ignore[no-untyped-call]


# The names that fedora_messaging.api uses of crochet when it publishes.
_NO_CROCHET = SimpleNamespace(setup=lambda: None, TimeoutError=TimeoutError)


@contextmanager
def replaced(publish: Callable[[Message, str | None], Eventual]) -> Iterator[None]:
    """Let ``fedora_messaging.api.publish`` publish by *publish* while the block runs."""
    module: Any = api
    before = module.crochet, module._twisted_publish_wrapper  # noqa: SLF001
    module.crochet, module._twisted_publish_wrapper = _NO_CROCHET, publish  # noqa: SLF001
    try:
        yield
    finally:
        module.crochet, module._twisted_publish_wrapper = before  # noqa: SLF001


def publish_by(send: Callable[[Message, str | None], object]) -> Callable[..., Eventual]:
    """Return a publish for :func:`replaced` that calls *send* with the message and its exchange.

    It sends the blinker signals of fedora-messaging, as upstream does.
    """

    def publish(message: Message, exchange: str | None = None) -> Eventual:
        try:
            api.pre_publish_signal.send(api.publish, message=message)
            send(message, exchange)
            api.publish_signal.send(api.publish, message=message)
        except Exception as error:  # noqa: BLE001 -- the caller gets it
            reason = as_upstream(error)
            api.publish_failed_signal.send(api.publish, message=message, reason=reason)
            return Done(reason)
        return Done()

    return publish


def publish_and_wait(
    begin: Callable[[Message, str | None], Eventual],
) -> Callable[..., Eventual]:
    """Return a publish for :func:`replaced` that calls *begin*, and waits for its result.

    It sends the blinker signals of fedora-messaging, as upstream does.
    """

    def publish(message: Message, exchange: str | None = None) -> Eventual:
        try:
            api.pre_publish_signal.send(api.publish, message=message)
            return _Signalling(begin(message, exchange), message)
        except Exception as error:  # noqa: BLE001 -- the caller gets it
            reason = as_upstream(error)
            api.publish_failed_signal.send(api.publish, message=message, reason=reason)
            return Done(reason)

    return publish


class _Signalling(Eventual):
    """Sends the signal of the end of a publish, in the thread that waits for the end."""

    def __init__(self, inner: Eventual, message: Message) -> None:
        self._inner = inner
        self._message = message

    def wait(self, timeout: float) -> None:
        try:
            self._inner.wait(timeout)
        except TimeoutError:
            # Upstream cancels then.
            raise
        except Exception as error:
            self._fail(error)
            raise
        api.publish_signal.send(api.publish, message=self._message)

    def cancel(self) -> None:
        self._inner.cancel()
        self._fail(TimeoutError("the broker did not confirm it in time"))

    def original_failure(self) -> Failure | None:
        return self._inner.original_failure()

    def _fail(self, error: Exception) -> None:
        api.publish_failed_signal.send(api.publish, message=self._message, reason=error)


def as_upstream(error: Exception) -> Exception:
    """Return the error that ``fedora_messaging.api.publish`` raises in the place of *error*."""
    if isinstance(error, ValidationError) and isinstance(error.__cause__, Exception):
        # Upstream raises the error of jsonschema.
        return error.__cause__
    return PublishException(reason=str(error)) if isinstance(error, PublishError) else error


@contextmanager
def recorded(publish: Callable[[Message, str | None], object]) -> Iterator[None]:
    """Let ``fedora_messaging.api`` publish by *publish*, without a reactor, while the block runs.

    For tests. ``api.twisted_publish`` calls its signals in threads of the reactor; here it calls
    them at once.
    """
    module: Any = api
    before = module.threads, module._twisted_service  # noqa: SLF001 -- as above
    factory = SimpleNamespace(
        publish=lambda message, exchange: defer.execute(
            _as_upstream_does, publish, message, exchange
        )
    )
    with replaced(publish_by(publish)):
        module.threads = SimpleNamespace(deferToThread=defer.execute)
        module._twisted_service = SimpleNamespace(factory=factory)  # noqa: SLF001
        try:
            yield
        finally:
            module.threads, module._twisted_service = before  # noqa: SLF001


def _as_upstream_does(
    publish: Callable[[Message, str | None], object], message: Message, exchange: str
) -> None:
    try:
        publish(message, exchange)
    except Exception as error:
        raise as_upstream(error) from error


class OutboxService:
    """Stands for the service that ``api.twisted_publish`` sends by; it sends to an outbox.

    Args:
        outbox: The outbox.

    Attributes:
        factory: Itself: upstream calls ``service.factory.publish``.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.factory = self

    def publish(self, message: Message, exchange: str) -> defer.Deferred[None]:
        """Publish *message* without blocking the event loop; call it there."""

        async def publish() -> None:
            try:
                await self._outbox.publish_async(message, exchange=exchange)
            except Exception as error:
                raise as_upstream(error) from error

        return defer.Deferred.fromFuture(asyncio.ensure_future(publish()))
