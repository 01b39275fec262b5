# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages that handlers publish: the outbox of an instance, its writer, and its own relay.

::

    publish(), api.publish() in a handler ──▶ its run ──▶ its outcome ──▶ settle ──▶ writer ─┐
    publish() elsewhere (setup, a task that outlives its handler) ─────────────────────────▶ table
                                                                     broker ◀── relay ◀──────┘

Nothing here costs anything before the first message: then the database is opened and SQLAlchemy
imported, in the writer's thread, and the thread of the relay starts. It starts with the instance if
an earlier process has left messages.

With ``publishing = "direct"`` only ``fedora_messaging.api`` goes another way: see :mod:`.shared`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

from fedora_messaging import api

from consumer_framework.adapters import codec
from consumer_framework.author.heartbeat import collect
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.ports import Outbox as OutboxPort
from consumer_framework.publishing import FILE, upstream
from consumer_framework.publishing import outbox as outboxes
from consumer_framework.publishing.message import OutboxError
from consumer_framework.publishing.shared import SharedSender
from consumer_framework.publishing.writer import PublishedWriter
from consumer_framework.settings import PublishingKind

from .control.schema import OutboxReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fedora_messaging.message import Message

    from consumer_framework.core.delivery import Published
    from consumer_framework.core.ports import Clock
    from consumer_framework.publishing.collecting import Entry
    from consumer_framework.publishing.messengers import Messenger
    from consumer_framework.publishing.relay import Relay
    from consumer_framework.publishing.relaying import RelayStatus
    from consumer_framework.settings import Settings

_log = logging.getLogger(__name__)

# Seconds that a drain gives the relay to send the last messages; others go out at the next start.
LAST_SENDS = 3.0
# Seconds that a drain waits for the batch on its way.
LAST_BATCH = 10.0
# Seconds before a relay that ended by a defect starts again.
_AGAIN = 30.0
_LOOK = 0.05

TOO_EARLY = (
    "the instance is not ready to publish yet, or not any more, so nothing was sent: publish from "
    "the handler or its setup, not from __init__ of a plain class or when a module is imported"
)


def refuse_early(_message: Message, _exchange: str | None = None) -> upstream.Eventual:
    """Stand for ``fedora_messaging.api.publish`` where it cannot work.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(TOO_EARLY)


class Publications(OutboxPort):
    """The outbox of an instance, with all that stores and sends its messages.

    Args:
        settings: The whole configuration.
        directory: The state directory; None for none.
        clock: The time.

    Attributes:
        outbox: The outbox; None without a place for it.
        is_direct: Whether fedora-messaging's API sends at once.
        status: The numbers of the relay; None before it starts.

    Raises:
        ConfigurationError: The outbox that the settings ask for has no place.
    """

    def __init__(self, settings: Settings, directory: Path | None, clock: Clock) -> None:
        self._settings = settings
        self._directory = directory
        self._clock = clock
        framework = settings.framework
        has_place = framework.outbox.database is not None or directory is not None
        if framework.publishing is PublishingKind.OUTBOX and not has_place:
            what = "there is no state directory for the outbox"
            cure = 'set outbox.database, or publishing = "direct"'
            raise ConfigurationError(Problem("consumer_config.framework.publishing", what, cure))
        self.is_direct = framework.publishing is PublishingKind.DIRECT or not has_place
        self.outbox = self._make_outbox() if has_place else None
        self.status: RelayStatus | None = None
        self._writer = PublishedWriter(self._prepared, clock.time, self._stored)
        self._sender = SharedSender(
            self._direct_messenger,
            lambda: self._settings.publish_exchange,
            lambda: self._settings.topic_prefix,
            codec.validate,
        )
        self._starting = threading.Lock()
        self._relaying: _Relaying | None = None
        self._is_stopped = False
        self._pid = os.getpid()
        self._published = 0

    def _make_outbox(self) -> _InstanceOutbox:
        settings = self._settings
        outbox = settings.framework.outbox
        if outbox.database is None:
            url = f"sqlite:///{self._directory}/{FILE}"
        else:
            url = outboxes.database_of(outbox)
        return _InstanceOutbox(
            url,
            outbox,
            exchange=settings.publish_exchange,
            topic_prefix=settings.topic_prefix,
            clock=self._clock.time,
            validate=codec.validate,
            belongs=collect,
            opens_late=True,
            stored=self._stored,
        )

    def _prepared(self) -> Any:
        migrations = logging.getLogger("alembic")
        if migrations.level == logging.NOTSET:
            # It tells each of its plugins.
            migrations.setLevel(logging.WARNING)
        assert self.outbox is not None  # noqa: S101 -- without it nothing is collected
        return self.outbox.prepared()

    def _direct_messenger(self) -> Messenger:
        from consumer_framework.publishing.messengers import make  # noqa: PLC0415 -- late
        from consumer_framework.publishing.relaying import endpoints_of  # noqa: PLC0415

        # The brokers of the instance itself, as fedora-messaging uses them.
        config = {**self._settings.consumer_config}
        config["framework"] = {**config.get("framework", {}), "outbox": {}}
        own = self._settings.model_copy(update={"consumer_config": config})
        return make("amqp", endpoints_of(own), {})

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let the publish functions of this process publish here while the block runs."""
        with contextlib.ExitStack() as stack:
            if self.outbox is not None:
                before = outboxes.set_default(self.outbox)
                stack.callback(outboxes.set_default, before)
            stack.enter_context(upstream.replaced(self._upstream_publish()))
            if not self.is_direct and self.outbox is not None:
                module: Any = api
                module._twisted_service = upstream.OutboxService(self.outbox)  # noqa: SLF001
                stack.callback(setattr, module, "_twisted_service", None)
            yield

    def _upstream_publish(self) -> Callable[..., upstream.Eventual]:
        outbox = self.outbox
        if self.is_direct or outbox is None:
            return upstream.publish_and_wait(self._sender.begin)
        return upstream.publish_by(
            lambda message, exchange: outbox.publish(message, exchange=exchange)
        )

    def start(self) -> None:
        """Start the relay if messages were left, or the database is one that the settings name."""
        if self.outbox is None:
            return
        if self._settings.framework.outbox.database is not None:
            self._relay_now()
        else:
            self._look()

    def _look(self) -> None:
        if self._directory is not None and has_rows(self._directory / FILE):
            self._relay_now()

    def store(self, published: Published) -> asyncio.Future[None]:
        """Begin to store the messages of one run; see :class:`.ports.Outbox`."""
        return self._writer.store(published)

    def apply(self, settings: Settings) -> None:
        """Use other settings from now on; those of the outbox's own table take a restart."""
        before, self._settings = self._settings, settings
        if self.outbox is not None:
            self.outbox.rename(settings.publish_exchange, settings.topic_prefix)
        if before.tls != settings.tls and self._relaying is not None:
            self._relay_now(again=True)

    @property
    def remark(self) -> str:
        """The relay in one line; "" if it has not started."""
        return f"outbox: {self.status.report().line}" if self.status is not None else ""

    @property
    def published(self) -> int:
        """The number of messages that handlers published since the start."""
        return self._published

    def report(self) -> OutboxReport | None:
        """Describe the outbox; None if its relay has not started."""
        if self.status is None:
            return None
        found = self.status.report()
        return OutboxReport(
            state=found.state,
            trouble=found.trouble,
            endpoint=found.endpoint,
            published=self._published,
            sent=found.counts["sent"],
            unroutable=found.counts["unroutable"],
            skipped=found.counts["skipped"],
            waiting=found.waiting,
            dead=found.dead,
            oldest=found.oldest,
        )

    def count(self) -> None:
        """Count the rows of the outbox in a thread, for the next report, unless that goes on.

        A process that a handler forked leaves its rows to the relay of this one: without a relay
        yet, the thread looks for them.
        """
        if self.outbox is None or self._is_stopped:
            return
        if self.status is not None:
            task = self.status.count
        elif self._directory is not None and (self._directory / FILE).exists():
            task = self._look
        else:
            return
        # Where the system allows no further thread, the next time will do.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=task, name="outbox-count", daemon=True).start()

    @property
    def is_stuck(self) -> bool:
        """True if the relay has not moved for a long time."""
        relay = self._relaying.relay if self._relaying is not None else None
        return relay is not None and relay.is_stuck

    async def stop(self) -> None:
        """Send the last messages, as far as that is quick; stop the relay, close the database.

        Messages that are left are sent after the next start.
        """
        await _in_thread(self._stop)

    def _stop(self) -> None:
        self._writer.close()
        self._sender.stop(LAST_BATCH)
        with self._starting:
            self._is_stopped = True
        if self._relaying is not None:
            self._relaying.stop(LAST_SENDS)
        if self.outbox is not None:
            self.outbox.close()

    def _stored(self, count: int) -> None:
        """Take note of *count* messages that were stored; any thread calls it."""
        if os.getpid() != self._pid:
            # A process that a handler forked: it has no relay, and may end at once.
            return
        with self._starting:
            self._published += count
        if count:
            self._relay_now()

    def _relay_now(self, *, again: bool = False) -> None:
        """Start the relay, unless it runs; *again* starts another one after it. In any thread."""
        with self._starting:
            former = self._relaying
            if self._is_stopped or self.outbox is None or (former is not None and not again):
                return
            self._relaying = _Relaying(self, former)

    def make_relay(self) -> Relay:
        """Return a relay with the settings of now.

        Raises:
            ConfigurationError: Its messenger cannot be made.
            OutboxError: The tables cannot be made.
        """
        from consumer_framework.publishing import relaying  # noqa: PLC0415 -- it imports SQLAlchemy
        from consumer_framework.publishing.events import RelayLog, RelayObservers  # noqa: PLC0415

        store = self._prepared()
        if self.status is None:
            messenger = self._settings.framework.outbox.messenger
            self.status = relaying.RelayStatus(self._clock, messenger)
        observers = RelayObservers(self.status, RelayLog())
        relay = relaying.relay_of(self._settings, store, observer=observers, clock=self._clock)
        self.status.relay, self.status.store = relay, store
        return relay


class _InstanceOutbox(outboxes.Outbox):
    """An outbox that tells when it has stored messages by itself."""

    def __init__(self, *args: Any, stored: Callable[[int], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._stored = stored

    def _put(self, messages: list[Entry]) -> None:
        super()._put(messages)
        self._stored(len(messages))


class _Relaying:
    """A thread that relays until it is stopped.

    Args:
        publications: Makes the relay.
        former: Is stopped first; None for none.

    Attributes:
        relay: The relay, once it is made.
    """

    def __init__(self, publications: Publications, former: _Relaying | None) -> None:
        self.relay: Relay | None = None
        self._publications = publications
        self._former = former
        self._is_hopeless = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def stop(self, patience: float = 0.0) -> None:
        """Send the messages that are left, for at most *patience* seconds, and end the thread."""
        began = time.monotonic()
        while not self._is_done(began) and time.monotonic() < began + patience:
            time.sleep(_LOOK)
        self._stop.set()
        self._thread.join(LAST_BATCH)

    def _is_done(self, since: float) -> bool:
        """Tell whether nothing is left to send, or nothing can be sent now."""
        relay = self.relay
        if relay is None:
            return self._is_hopeless
        is_away = relay.endpoint_fault or relay.store_fault or relay.is_standby
        return bool(is_away) or relay.idle_at >= since

    def _run(self) -> None:
        if self._former is not None:
            self._former.stop()
            self._former = None
        while not self._stop.is_set():
            try:
                self.relay = self._publications.make_relay()
                self.relay.run(self._stop)
            except ConfigurationError as error:
                self._is_hopeless = True
                for line in str(error).splitlines():
                    _log.error("messages are stored and not sent: %s", line)
                self._stop.wait()
            except OutboxError as error:
                _log.error("messages are stored and not sent: %s", error)
                self._stop.wait(_AGAIN)
            except Exception:  # noqa: BLE001 -- a defect must not end the sending for good
                _log.exception("the relay failed, and starts again; please report this defect")
                self._stop.wait(_AGAIN)


def has_rows(file: Path) -> bool:
    """Tell whether a SQLite file has messages of an outbox, without SQLAlchemy."""
    if not file.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT 1 FROM fm_outbox LIMIT 1").fetchall())
    except sqlite3.Error:
        # The relay tells the fault.
        return True


async def _in_thread(function: Callable[[], None]) -> None:
    """Call *function* in a thread of its own, for which the end of the process does not wait."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            function()
        except Exception:  # noqa: BLE001 -- the drain goes on
            _log.exception("the outbox could not be closed; please report this defect")
        # The drain may have been cut short.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_finish, done)

    threading.Thread(target=run, name="outbox-close", daemon=True).start()
    await done


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
