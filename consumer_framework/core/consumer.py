# SPDX-License-Identifier: GPL-2.0-or-later
"""The base class that authors of consumers may use."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from .handler import Handler

if TYPE_CHECKING:
    from .settings import Recovery


class Consumer(ABC):
    """A message consumer that is built from ``[consumer_config]``.

    A subclass implements :meth:`handle`. Where it has a nested ``Config`` -- a pydantic model, a
    dataclass or a ``TypedDict`` -- the ``[consumer_config]`` table is parsed and checked with
    it, and an instance that does not fit never starts::

        class Sample(Consumer):
            class Config(pydantic.BaseModel):
                packages: list[str] = []

            def handle(self, message):
                if set(message.packages) & set(self.config.packages):
                    print(message.summary)

    Each of ``setup``, ``handle`` and ``teardown`` may be a plain method or a coroutine method.
    Plain ones run in a thread of their own and may block; the connection's heartbeats never wait
    for them. Coroutine methods run on the process's event loop and must not block. ``__init__``
    runs on the event loop's thread, while the loop runs.

    Two methods are optional, and not there unless a subclass defines them:

    - ``ordering_key(self, message)`` returns the ordering key of a message, for
      ``ordering = "key"`` in ``[consumer_config.framework]``; a plain method, quick;
    - ``handle_batch(self, messages)`` handles a list of messages, for ``batch`` there. A subclass
      that has it needs no ``handle``: a single message is a batch of one.

    Attributes:
        recovery: What happens when the handler fails; what the configuration file says in
            ``[consumer_config.framework.recovery]`` stands before it.
        config: ``[consumer_config]`` without its ``framework`` table, as an instance of
            ``Config``; the plain dict where the class has none.
    """

    Config: ClassVar[Any] = None
    recovery: ClassVar[Recovery | None] = None
    config: Any

    def __init__(self, config: Any) -> None:
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        batch = getattr(cls, "handle_batch", None)
        # Before ABC looks for what is not implemented.
        if batch is not None and cls.handle is Consumer.handle:
            alone = _handle_alone_async if inspect.iscoroutinefunction(batch) else _handle_alone
            cls.handle = alone  # type: ignore[method-assign]

    def setup(self) -> Any:  # noqa: B027 -- optional
        """Open what :meth:`handle` needs. Runs once, before the first message.

        With one slot it runs in the thread that :meth:`handle` runs in, so that a database
        connection made here may be used there.
        """

    @abstractmethod
    def handle(self, message: Any) -> Any:
        """Handle one message.

        Returning means success: the message is acknowledged. What may be raised instead is in
        :mod:`consumer_framework`.

        Args:
            message: A ``fedora_messaging.message.Message``, or the subclass that the message's
                schema names; validated.
        """

    def teardown(self) -> Any:  # noqa: B027 -- optional
        """Close what :meth:`setup` opened. Runs once, after the last message."""


def _handle_alone(self: Any, message: Any) -> Any:
    """Handle one message, as a batch of one."""
    return self.handle_batch([message])


async def _handle_alone_async(self: Any, message: Any) -> Any:
    """Handle one message, as a batch of one."""
    return await self.handle_batch([message])


def handles_singly(consumer: type[Consumer]) -> bool:
    """Whether authors wrote a ``handle`` for *consumer*, and not ``handle_batch`` alone."""
    return consumer.handle not in (_handle_alone, _handle_alone_async)


def handler_of(consumer: Consumer, name: str) -> Handler:
    """Return *consumer* as what the host runs; *name* is how logs call it."""
    return Handler(
        name,
        consumer.handle,
        consumer.setup,
        consumer.teardown,
        getattr(consumer, "ordering_key", None),
        getattr(consumer, "handle_batch", None),
    )
