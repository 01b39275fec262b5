# SPDX-License-Identifier: GPL-2.0-or-later
"""The base class that authors of consumers may use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from .batch import Batch
from .handler import Handler

if TYPE_CHECKING:
    from pathlib import Path

    from fedora_messaging.message import Message

    from consumer_framework.settings import Recovery


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

    With ``ordering = "key"`` and no ``ordering_key`` in the file, a subclass has a method
    ``ordering_key(self, message)`` as well: messages with the same key, a text or a number, are
    handled one after the other and in their order. It runs on the event loop, and must be quick.

    Attributes:
        recovery: What happens when the handler fails; what the configuration file says in
            ``[consumer_config.framework.recovery]`` stands before it.
        config: ``[consumer_config]`` without its ``framework`` table, as an instance of
            ``Config``; the plain dict where the class has none.
        state_dir: Where this consumer may keep files.
    """

    Config: ClassVar[Any] = None
    recovery: ClassVar[Recovery | None] = None
    config: Any
    # The host sets it before `__init__`.
    _state_dir: Path

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def state_dir(self) -> Path:
        """Return the directory for files that this consumer keeps; make it where it is missing.

        It is ``files`` in the state directory of the instance: it outlives restarts, and the
        sandbox of the shipped unit lets the consumer write there. Each worker of a scaled
        instance has a directory of its own. In the test harness it is a temporary directory.

        Raises:
            OSError: The directory cannot be made.
            RuntimeError: No host made this consumer.
        """
        directory: Path | None = getattr(self, "_state_dir", None)
        if directory is None:
            raise RuntimeError("state_dir is known only in an instance and in the test harness")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def setup(self) -> Any:  # noqa: B027 -- optional
        """Open what :meth:`handle` needs. Runs once, before the first message.

        With one slot it runs in the thread that :meth:`handle` runs in, so that a database
        connection made here may be used there.
        """

    @abstractmethod
    def handle(self, message: Message) -> Any:
        """Handle one message.

        Returning means success: the message is acknowledged. What may be raised instead is in
        :mod:`consumer_framework`.

        Args:
            message: The message, validated. Its class is the one that its schema names, a
                subclass of ``fedora_messaging.message.Message``; ``isinstance`` tells which.
        """

    def teardown(self) -> Any:  # noqa: B027 -- optional
        """Close what :meth:`setup` opened. Runs once, after the last message."""


class BatchConsumer(Consumer):
    """A consumer that gets several messages at once.

    How many, and how long the first one waits for the others, is in
    ``[consumer_config.framework.batch]``::

        class Indexer(BatchConsumer):
            def handle_batch(self, messages):
                for message, error in self.index.add_all(messages):
                    messages.fail(message, error)

    Messages that failed, or were in the handler when the process died, come alone the next time:
    one that is poison takes no others with it.
    """

    @abstractmethod
    def handle_batch(self, messages: Batch) -> Any:
        """Handle some messages.

        Returning means success for all of them but those that ``messages.fail(message, error)``
        was called for; raising means that all the others have failed.

        Args:
            messages: One message or more, in the order in which they came. All are validated.
        """

    def handle(self, message: Message) -> Any:
        """Handle one message: a batch of one."""
        return self.handle_batch(Batch([message]))


def handler_of(consumer: Consumer, name: str) -> Handler:
    """Return *consumer* as what the host runs; *name* is how logs call it."""
    return Handler(
        name,
        consumer.handle,
        consumer.setup,
        consumer.teardown,
        call_batch=consumer.handle_batch if isinstance(consumer, BatchConsumer) else None,
        ordering_key=getattr(consumer, "ordering_key", None),
    )
