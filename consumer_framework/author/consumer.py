# SPDX-License-Identifier: GPL-2.0-or-later
"""The base classes that a consumer may have."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self

from typing_extensions import TypeVar

from consumer_framework.core.errors import ConfigurationError, Problem

from .batch import Batch
from .config_type import argument_of, names_a_type
from .handler import Handler
from .routing import RouteTable, call_of, collected
from .steps import Once

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fedora_messaging.message import Message

    from consumer_framework.settings import Recovery

    from .routing import Route


# The type of `config`. A subclass that names none has any.
ConfigT = TypeVar("ConfigT", default=Any)


class Consumer(ABC, Generic[ConfigT]):
    """A message consumer that is built from ``[consumer_config]``.

    A subclass implements :meth:`handle`, or has routes: methods with :func:`.on_topic` or
    :func:`.on_message`. It may name the type of its configuration: a pydantic model, a dataclass or
    a ``TypedDict``. The ``[consumer_config]`` table is parsed and validated with it, and an
    instance with an invalid table does not start. Type checkers know ``self.config`` by it. If
    ``Settings`` is such a type::

        class Sample(Consumer[Settings]):
            def handle(self, message):
                if set(message.packages) & set(self.config.packages):
                    print(message.summary)

    In place of that, the type may be a nested class ``Config``. For a type checker, write
    ``config: Config`` below it.

    Each of ``setup``, ``handle``, the routes and ``teardown`` may be a plain method or a coroutine
    method. Plain methods run in a thread of their own and may block; the connection's heartbeats
    never wait for them. Coroutine methods run on the process's event loop and must not block.
    ``__init__`` runs on the event loop's thread, while the loop runs.

    With ``ordering = "key"`` and no ``ordering_key`` in the file, a subclass also implements
    ``ordering_key(self, message)``, which returns a string or a number. Messages with the same key
    are handled one after the other and in their order. The method runs on the event loop, and must
    be quick.

    A subclass may implement ``stop_requested(self)``: the instance calls it on the event loop when
    it begins to stop, while :meth:`handle` may still run. It must be quick. The instance waits for
    :meth:`handle` as usual.

    Args:
        config: The value of the attribute ``config``.

    Attributes:
        recovery: The treatment of failures. Keys in the configuration file, in
            ``[consumer_config.framework.recovery]``, take precedence.
        config: ``[consumer_config]`` without its ``framework`` table, as an instance of the type
            of the configuration; as a dict where the class names none.
        state_dir: The directory for files that this consumer keeps.
    """

    Config: ClassVar[Any] = None
    recovery: ClassVar[Recovery | None] = None
    config: ConfigT
    # The host sets it before `__init__`.
    _state_dir: Path
    _routes: ClassVar[tuple[Route, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        argument = argument_of(cls, Consumer)
        if names_a_type(argument) and cls.Config is None:
            cls.Config = argument
        cls._routes = collected(cls)

    def __new__(cls, *_args: Any, **_options: Any) -> Self:  # noqa: D102
        if not (cls._routes or takes_the_rest(cls)):
            raise TypeError(f"{cls.__qualname__} has neither a handle() nor routes")
        return super().__new__(cls)

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @property
    def state_dir(self) -> Path:
        """Return the directory for files that this consumer keeps; create it where it is missing.

        It is ``files`` in the state directory of the instance. It outlives restarts, and the
        sandbox of the shipped unit lets the consumer write there. Each worker of a scaled
        instance has a directory of its own. In the test harness it is a temporary directory.

        Raises:
            OSError: The directory cannot be created.
            RuntimeError: The consumer was made neither by an instance nor by the test harness.
        """
        directory: Path | None = getattr(self, "_state_dir", None)
        if directory is None:
            raise RuntimeError("state_dir is known only in an instance and in the test harness")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def once(self, name: str, message: Message | None = None) -> Once:
        """Enter a step that is done once for the message that the handler has.

        A step that is done is recorded in the store of the instance. When the handler runs again
        for the same message, after a failure, a restart or an operator's replay, the step is
        skipped, and gives its result back::

            def handle(self, message):
                with self.once("file-bug") as step:
                    bug = step.run(self.bugzilla.file, message.summary)
                with self.once("comment") as step:
                    step.run(self.forge.comment, message.pull_request, f"see bug {bug}")

        In a coroutine handler it is ``async with``, and ``await step.run(...)``. A block without
        ``run`` looks at ``step.done``, and may set ``step.result``; leaving it without an exception
        records the step.

        If the process dies between the effect and the record, the step is done a second time: let
        the other side recognise it where that matters. Results are JSON, of 64 KiB at most.

        Args:
            name: The name of the step, at most 200 characters, different for each effect of the
                handler. It must stay the same as long as messages may run again.
            message: The message of a batch that the step belongs to.

        Raises:
            RuntimeError: No handler has a message here, or the step is under way already.
            ValueError: *name* is no name, or the handler does not have *message*.
            DependencyFault: Raised on entering or leaving the block: the store cannot be read, or
                cannot take the record. The message waits until the store works. The step is not
                done a second time unless the process ends meanwhile.
        """
        return Once(name, message)

    @classmethod
    def check_config(cls, config: ConfigT, *, connect: bool) -> Iterable[Problem]:  # noqa: ARG003 -- for subclasses
        """Return the problems of *config* that its type cannot see, for ``fm-consumer check``.

        An instance does not call it: :meth:`setup` raises for the same problems. It makes and
        changes nothing. It may run as another user than the instance, such as root::

            @classmethod
            def check_config(cls, config, *, connect):
                if not config.keyring.is_file():
                    yield Problem("keyring", f"{config.keyring} is no file", "create it")

        Args:
            config: ``[consumer_config]``, as ``__init__`` gets it.
            connect: True if the operator allows connections to servers, with ``--broker``.

        Returns:
            One :class:`.Problem` for each. Its path is a key in ``[consumer_config]``, or "".
        """
        return ()

    def setup(self) -> Any:
        """Open the resources of :meth:`handle`. Runs once, before the first message.

        With one slot it runs in the same thread as :meth:`handle`, so a database connection made
        here may be used there.

        Raises:
            DependencyFault: The instance makes another object later, and calls its ``setup``.
                Other exceptions that mean a broken dependency have the same effect.
            Exception: Any other exception ends the start of the instance.
        """

    def health(self) -> Any:
        """Report a fault of the consumer that no message shows, such as an index that is too old.

        A subclass may implement it, as a plain method or a coroutine method. From the end of
        :meth:`setup` to the beginning of the stop, the instance calls it every ``health_interval``.
        A plain method runs in a thread of its own, beside :meth:`handle`, so it must not use what
        only one thread may use. It may take ``health_timeout``.

        Returns:
            None if the consumer is well; otherwise the fault, as text. Then the condition of the
            instance is ``unhealthy``: ``systemctl status`` and ``fm-consumer status`` show the
            text. Messages are handled all the same, and the instance is not restarted.

        Raises:
            Exception: The consumer is not well; the text is that of the exception.
        """

    def handle(self, message: Message) -> Any:
        """Handle one message; in a consumer with routes, a message that matches none of them.

        Returning means success, and the message is acknowledged. The returned object is ignored.

        Args:
            message: The message, validated. Its class is a subclass of
                ``fedora_messaging.message.Message``, the class that the message's schema names.

        Raises:
            Signal: One of the exceptions of :mod:`consumer_framework` chooses the treatment of
                the message, for example :class:`.Retry` or :class:`.Drop`.
            Exception: Any other exception is a failure, which the recovery settings treat.
        """
        name = type(self).__name__
        # No NotImplementedError: pylint would ask each class with routes for this method.
        raise TypeError(f"{name} has no handle(), and no route for {message.topic}")

    def teardown(self) -> Any:
        """Close the resources that :meth:`setup` opened. Runs once, after the last message."""


class BatchConsumer(Consumer[ConfigT]):
    """A consumer that gets several messages at once.

    ``[consumer_config.framework.batch]`` has the size of a batch, and the time that its first
    message waits for the others::

        class Indexer(BatchConsumer):
            def handle_batch(self, messages):
                for message, error in self.index.add_all(messages):
                    messages.fail(message, error)

    Messages that failed, or were in the handler when the process died, come alone the next time.
    So a message that always fails does not fail others with it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls._routes:
            names = ", ".join(route.name for route in cls._routes)
            what = f"{cls.__qualname__} takes batches, and has the routes {names}"
            cure = "a batch has messages of any topic: subclass Consumer, or remove the decorators"
            problem = Problem("callback", what, cure)
            raise ConfigurationError(problem, source=f"{cls.__module__}.{cls.__qualname__}")

    @abstractmethod
    def handle_batch(self, messages: Batch) -> Any:
        """Handle a batch of messages.

        Returning means success for every message, except those for which the method called
        ``messages.fail(message, error)``.

        Args:
            messages: One message or more, in the order in which they came. All are validated.

        Raises:
            Signal: As in :meth:`Consumer.handle`, for every message without an error of its own.
            Exception: Likewise.
        """

    def once(self, name: str, message: Message | None = None) -> Once:
        """Enter a step that is done once for *message*, as ``Consumer.once`` does.

        Args:
            name: The name of the step.
            message: An object of the batch.

        Raises:
            TypeError: *message* is missing.
        """
        if message is None:
            cure = f"write self.once({name!r}, message) with a message of the batch"
            raise TypeError(f"a batch consumer has a step for each message: {cure}")
        return super().once(name, message)

    def handle(self, message: Message) -> Any:
        """Handle one message: a batch of one."""
        return self.handle_batch(Batch([message]))


def routes_of(kind: type[Consumer]) -> tuple[Route, ...]:
    """Return the routes of a class, in the order in which they run."""
    return kind._routes  # noqa: SLF001 -- of this module


def takes_the_rest(kind: type[Consumer]) -> bool:
    """Tell whether the class has a ``handle`` of its own, for all messages without a route."""
    return kind.handle is not Consumer.handle


def table_of(value: Any, topic_prefix: str) -> RouteTable | None:
    """Return the table that finds the routes of messages.

    Args:
        value: The author's object; only a class of :class:`Consumer` has routes.
        topic_prefix: The ``topic_prefix`` of the configuration.

    Returns:
        None for an object without routes.
    """
    if not (inspect.isclass(value) and issubclass(value, Consumer) and routes_of(value)):
        return None
    return RouteTable(routes_of(value), topic_prefix, takes_the_rest(value))


def handler_of(consumer: Consumer, name: str) -> Handler:
    """Return the handler of *consumer*; logs call it *name*."""
    kind = type(consumer)
    methods = {route.name: getattr(consumer, route.name) for route in routes_of(kind)}
    if methods and takes_the_rest(kind):
        methods[""] = consumer.handle
    return Handler(
        name,
        call_of(methods) if methods else consumer.handle,
        consumer.setup,
        consumer.teardown,
        call_batch=consumer.handle_batch if isinstance(consumer, BatchConsumer) else None,
        ordering_key=getattr(consumer, "ordering_key", None),
        stop_requested=getattr(consumer, "stop_requested", None),
        health=consumer.health if kind.health is not Consumer.health else None,
    )
