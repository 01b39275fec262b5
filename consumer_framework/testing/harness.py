# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a consumer in a test, as an instance would, without a broker and without waiting.

:class:`Harness` makes a configuration and a plan of its arguments, and a :class:`.VirtualInstance`
of the plan. Messages that the handler publishes are recorded, and not sent.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import pika
from fedora_messaging import config as upstream

from consumer_framework import settings as core
from consumer_framework.adapters import codec
from consumer_framework.author.heartbeat import collect
from consumer_framework.author.translate import hosting
from consumer_framework.core import text
from consumer_framework.core.disposition import Ack, Defer, GiveBack, Halt, Hold, Quarantine, Reject
from consumer_framework.publishing import upstream as upstream_api
from consumer_framework.publishing.capturing import CapturedMessages, CapturingStore
from consumer_framework.publishing.outbox import Outbox, set_default
from consumer_framework.runtime.assembly import loader
from consumer_framework.runtime.assembly.loader import Target, find
from consumer_framework.runtime.assembly.plan import plan_of
from consumer_framework.settings import PublishingKind

from .fake_store import FakeStore
from .fakes import FakeOutbox
from .virtual_instance import VirtualInstance

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from fedora_messaging.message import Message

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery, Publication
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.settings import Framework

    from .fake_queue import MessageRecord


def _target(consumer: Any) -> Target:
    if isinstance(consumer, str):
        return find(consumer, "the test")
    name = getattr(consumer, "__qualname__", type(consumer).__qualname__)
    return loader.checked(Target(f"{consumer.__module__}:{name}", "the test", consumer))


def document_of(config: dict[str, Any], framework: dict[str, Any]) -> dict[str, Any]:
    """The whole file, with these tables of ``consumer_config`` and its ``framework``."""
    defaults: dict[str, Any] = copy.deepcopy(dict(upstream.DEFAULTS))
    return {
        **defaults,
        # As in a file that does not say: the prefetch count follows from the framework's settings.
        "qos": {},
        "log_config": None,
        "monitoring": None,
        "consumer_config": {**config, "framework": framework} if framework else config,
    }


@contextmanager
def upstream_config(document: dict[str, Any]) -> Iterator[None]:
    """Make *document* the configuration of fedora-messaging, whose ``conf`` callbacks may read."""
    conf = upstream.conf
    before, loaded = dict(conf.items()), conf.loaded
    conf.loaded = True
    try:
        conf.update({**document, "monitoring": {}})
        yield
    finally:
        conf.clear()
        conf.update(before)
        conf.loaded = loaded


class PublishingCapture:
    """The outbox of a harness and of a replay, which records.

    Attributes:
        published: The messages that are stored.
        outbox: The port of the core.
        collect: Lets messages belong to the current run of the handler.
        store: Takes the messages that do not.
    """

    def __init__(self) -> None:
        self.published = CapturedMessages()
        self.collect: Callable[[Sequence[Publication]], bool] = collect
        store: Any = CapturingStore(self.published)
        self.store = store
        self.outbox = FakeOutbox(store.put)
        self._of_process = Outbox(
            "sqlite://",
            validate=codec.validate,
            belongs=self._belongs,
            opens_late=True,
        )
        self._at_once = Outbox("sqlite://", validate=codec.validate, opens_late=True)
        self._of_process.store = self._at_once.store = store

    def _belongs(self, messages: Sequence[Publication]) -> bool:
        return self.collect(messages)

    @contextmanager
    def installed(self, framework: Framework, conf: Mapping[str, Any]) -> Iterator[None]:
        """Let the publish functions of the process publish here while the block runs."""
        for outbox in (self._of_process, self._at_once):
            outbox.rename(conf["publish_exchange"], conf["topic_prefix"])
        is_direct = framework.publishing is PublishingKind.DIRECT
        target = self._at_once if is_direct else self._of_process
        before = set_default(self._of_process)
        try:
            with upstream_api.recorded(lambda m, exchange: target.publish(m, exchange=exchange)):
                yield
        finally:
            set_default(before)


class Harness:
    """Delivers messages to a consumer, in virtual time, and tells their dispositions.

    Everything between the broker and the handler is as in an instance: decoding, retries, holding,
    deferral, quarantine, the pause for a broken dependency. The broker, the store's disk and the
    time are fakes::

        with Harness(Sample, config={"packages": ["kernel"]}) as harness:
            assert isinstance(harness.deliver(message), Ack)

    A retry comes when its time has come, which is when the test says so:

    >>> from fedora_messaging.message import Message
    >>> tries = []
    >>> def handler(message):
    ...     tries.append(message.id)
    ...     if len(tries) < 3:
    ...         raise ValueError("not yet")
    >>> with Harness(handler) as harness:
    ...     message = Message(topic="org.example.test", body={"n": 1})
    ...     held = harness.deliver(message)  # once, and once more at once
    ...     print(type(held).__name__, len(tries), held.until - harness.now)
    ...     harness.advance("10s")
    ...     print(harness.acked == [message], len(harness.attempts(message)))
    Hold 2 10.0
    True 2

    Plain handlers run in a thread of their own and are waited for. Coroutines run on a loop
    whose ``asyncio.sleep`` takes virtual time.

    A coroutine test may call the methods as they are. They block the event loop of the test. If
    the handler needs something on that loop, such as a test server, run the method in a thread:
    ``await asyncio.to_thread(harness.deliver, message)``.

    Args:
        consumer: A subclass of :class:`.Consumer`, a class without constructor arguments, a
            function, a coroutine function, or the ``"module:object"`` of any of them.
        config: ``[consumer_config]``.
        settings: ``[consumer_config.framework]``, as TOML has it.
        chance: The random number, from 0 to 1, that is used each time. With 0.5 the delays between
            retries are the configured ones.
        patience: Real seconds to wait for a coroutine that awaits the world outside.

    Attributes:
        store: The deferred and quarantined messages; set its ``error``, and it cannot write.
        published: The messages that the consumer published, with the functions of
            ``fedora_messaging.api`` or of :mod:`consumer_framework.publishing`, in their order.
            None is sent.
            A message of a handler is here once its own message is acknowledged. One that fails
            publishes nothing.
        outbox: Keeps them; set its ``error``, and it cannot write.

    Raises:
        ConfigurationError: *config* or *settings* would start no instance.
    """

    def __init__(
        self,
        consumer: Any,
        *,
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        chance: float = 0.5,
        patience: float = 1.0,
    ) -> None:
        self.store = FakeStore()
        self._publishing = PublishingCapture()
        self.published = self._publishing.published
        self.outbox = self._publishing.outbox
        self.chance = chance
        self._document = document_of(dict(config or {}), dict(settings or {}))
        self._files = Path(tempfile.gettempdir(), f"fm-consumer-{uuid.uuid4().hex}")
        parsed = core.parse(self._document, default_bindings=True)
        plan = plan_of(_target(consumer), parsed, "settings", self._files)
        self._framework = plan.framework
        self._instance = VirtualInstance(
            plan, self.store, lambda: self.chance, patience, self.outbox
        )
        self._dispositions = self._instance.dispositions
        self._queue = self._instance.queue
        self._replays: dict[int, asyncio.Task[Disposition]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start the instance; an exception of the consumer's own ``setup`` is raised here."""
        self._instance.open()
        with self._stack as stack:
            stack.callback(self._instance.time.close)
            stack.callback(shutil.rmtree, self._files, ignore_errors=True)
            stack.enter_context(upstream_config(self._document))
            publishing = self._publishing.installed(self._framework, self._document)
            stack.enter_context(publishing)
            stack.enter_context(hosting())
            self._instance.start()
            # From here on, __exit__ cleans up.
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the instance, its ``teardown`` included, even if messages still wait."""
        with self._stack:
            self._instance.stop(teardown=kind is None)

    # The part of the publisher, and of time.

    def deliver(self, message: Message, *, kills: int = 0) -> Disposition | None:
        """Publish *message* and have it delivered.

        Args:
            message: The message; it need not be valid.
            kills: How often the process is killed while the handler has the message, as by
                SIGKILL, before the handler does anything. A new process follows each.

        Returns:
            Its disposition so far. None while it is being handled, and while it waits in the queue:
            for its turn, or because the instance is paused or stopped.
        """
        properties = copy.deepcopy(message._properties)  # noqa: SLF001 -- as publishing does
        body = message._encoded_body  # noqa: SLF001
        return self._deliver(message, message.topic, properties, body, kills)

    def deliver_raw(  # noqa: PLR0913 -- the parts of a delivery, each with a default
        self,
        body: bytes = b"{}",
        *,
        headers: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        content_encoding: str | None = "utf-8",
        routing_key: str = "a.topic",
        kills: int = 0,
    ) -> Disposition | None:
        """Publish bytes that may be no message; other methods take the *body* in its place.

        Args:
            body: The bytes.
            headers: The headers table; None for none, which fedora-messaging never sends.
            message_id: The message id; None for none.
            content_encoding: Said to be the body's.
            routing_key: The topic.
            kills: As for :meth:`deliver`.

        Returns:
            As :meth:`deliver` does.
        """
        properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
            content_type="application/json",
            content_encoding=content_encoding,
            headers=None if headers is None else dict(headers),
            message_id=message_id,
        )
        return self._deliver(body, routing_key, properties, body, kills)

    def kill_next(self, message: Message, times: int = 1) -> None:
        """Let the process be killed the next *times* that the handler has *message*."""
        self._instance.kills[message.id] = times

    def advance(self, duration: str | float) -> None:
        """Let time pass, and due messages run; *duration* is ``"1h 30m"``, or seconds."""
        self._instance.advance(text.seconds(duration))

    def cut(self) -> None:
        """Drop the connection: unsettled messages are delivered again, a moment later."""
        self._instance.cut()

    def crash(self) -> None:
        """Kill the process, as by SIGKILL, and start a new one.

        Messages that the old one had not settled are delivered again, a moment later.
        """
        self._instance.crash()

    def restart(self) -> None:
        """Stop the process in good order, as by SIGTERM, and start a new one."""
        self._instance.restart()

    # The part of the operator.

    def replay(self, message: Message | bytes) -> Disposition | None:
        """Have a quarantined message run again, as by ``fm-consumer quarantine replay``.

        Returns:
            Its disposition. None while it is being handled, and if it did not run because the
            instance is stopped, or pauses meanwhile.

        Raises:
            LookupError: It is not quarantined, or it is being replayed already, or an earlier
                message with its key has to be replayed, or dropped, first.
        """
        row, record = self._claimable(message)
        replay = self._replays[row.row] = self._instance.replay(row)
        self._instance.settle_down()
        if not replay.done() or replay.cancelled():
            return None
        disposition = replay.result()
        if isinstance(disposition, GiveBack):
            return None
        return record.disposition if isinstance(disposition, Defer) else disposition

    def drop(self, message: Message | bytes) -> None:
        """Lose a quarantined message, as by ``fm-consumer quarantine drop``.

        Raises:
            LookupError: It is not quarantined, or it is being replayed.
        """
        row, record = self._quarantined_row(message)
        self.store.drop(row.row)
        record.disposition = Reject("dropped by an operator")
        self._instance.look()

    # The questions of a test.

    @property
    def halted(self) -> Halt | None:
        """The disposition that stopped the instance; None while it runs."""
        return self._instance.halted

    @property
    def paused(self) -> str:
        """The reason for which the instance consumes nothing, "" while it consumes."""
        return self._instance.paused

    @property
    def now(self) -> float:
        """Seconds since the epoch: the machine's time at first, the virtual one from then on."""
        return self._instance.time.time()

    @property
    def acked(self) -> list[Any]:
        """The messages that are done: handled, skipped, or halted on without a requeue."""
        return self._queue.where(
            lambda p: isinstance(p.disposition, Ack | Halt) and p.answer == "ack"
        )

    @property
    def rejected(self) -> list[Any]:
        """The messages that were lost on purpose."""
        return self._queue.where(lambda p: isinstance(p.disposition, Reject))

    @property
    def held(self) -> list[Any]:
        """The messages that wait in memory to be tried again."""
        unsettled = self._queue.unsettled
        return self._queue.where(lambda p: isinstance(p.disposition, Hold) and p in unsettled)

    @property
    def deferred(self) -> list[Any]:
        """The messages that wait in the store to be tried again."""
        return self._queue.where(lambda p: isinstance(self._dispositions.current(p), Defer))

    @property
    def quarantined(self) -> list[Any]:
        """The messages that wait in the store for an operator.

        Those with the same ordering key that come later do, too.
        """
        return self._queue.where(lambda p: isinstance(self._dispositions.current(p), Quarantine))

    @property
    def queued(self) -> list[Any]:
        """The messages that wait in the queue."""
        ready = self._queue.ready
        return self._queue.where(lambda p: p in ready)

    @property
    def unsettled(self) -> list[Any]:
        """The messages that the instance has: held, in the handler, or waiting for either."""
        unsettled = self._queue.unsettled
        return self._queue.where(lambda p: p in unsettled)

    @property
    def requeued(self) -> list[Any]:
        """Those of the :attr:`queued` ones that were delivered before."""
        ready = self._queue.ready
        return self._queue.where(lambda p: p in ready and p.redelivered)

    def published_by(self, message: Message | bytes) -> list[Message]:
        """Return the messages that the handler published for *message*, and that are stored.

        Those of a batch are published for each of its messages.
        """
        records = self._queue.all_of(message)
        runs = [
            run
            for run in self.outbox.runs
            if any(record.is_of(delivery) for record in records for delivery in run.deliveries)
        ]
        ids = {published.id for run in runs for published, _ in run.messages}
        return [one for one in self.published if one.id in ids]

    def attempts(self, message: Message | bytes) -> tuple[Attempt, ...]:
        """Return the failed attempts at *message*; of its last publish, if there were several."""
        return self._queue.latest(message).history.attempts

    def runs(self, message: Message | bytes) -> list[float]:
        """Return the moments at which the handler began with *message*, since the epoch."""
        return [at for record in self._queue.all_of(message) for at in record.runs]

    # Helpers.

    def _deliver(
        self, given: object, key: str, properties: Any, body: bytes, kills: int
    ) -> Disposition | None:
        record = self._queue.publish(given, key, properties, body)
        self._instance.deliver(record, kills)
        return record.disposition

    def _quarantined_row(self, message: Message | bytes) -> tuple[Delivery, MessageRecord]:
        record = self._queue.latest(message)
        rows = [delivery for delivery, _ in self.store.quarantined if record.is_of(delivery)]
        if not rows:
            raise LookupError(f"not quarantined: {message!r}")
        replay = self._replays.get(rows[0].row)
        if replay is not None and not replay.done():
            raise LookupError(f"is being replayed: {message!r}")
        return rows[0], record

    def _claimable(self, message: Message | bytes) -> tuple[Delivery, MessageRecord]:
        row, record = self._quarantined_row(message)
        if self.store.is_blocked(row.lane, row.row):
            raise LookupError(f"is behind another one with its key: {message!r}")
        return row, record


class ConsumerFactory(Protocol):
    """The fixture ``consumer``: starts consumers, and stops them at the end of the test."""

    def __call__(
        self,
        consumer: Any,
        *,
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        chance: float = 0.5,
        patience: float = 1.0,
    ) -> Harness:
        """Start *consumer*; the arguments and errors are those of :class:`.Harness`."""
        ...
