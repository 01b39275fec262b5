# SPDX-License-Identifier: GPL-2.0-or-later
"""The outbox as applications use it: publish a message now, or with a transaction.

Where the application has a transaction, the message is a part of it::

    with Session(engine) as session, session.begin():
        session.add(build)
        outbox.publish(message, session=session)

Rolled back means never sent. Committed means sent at least once, each time with the same id.
Without a transaction of the application, :meth:`Outbox.publish` commits by itself, and
:meth:`Outbox.transaction` commits several messages at once. This *spool mode* is durable: the
message survives the process and the machine. It is not atomic with other changes of the
application: if the application dies between its own commit and ``publish()``, the message is lost.

The three choices of a publisher, by topic: ``spool`` returns when the message is stored, ``wait``
when it is sent, and ``skip`` tells the relay to try once. Inside the application's transaction
``wait`` is the same as ``spool``, because the relay cannot see the row before the commit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from fedora_messaging import config as upstream_config

from consumer_framework.core import secrets
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.settings import outbox_settings

from . import FILE, mocks
from .collecting import TIMEOUT, Entry, Pending, Publisher
from .message import NotSentError, Outgoing
from .mocks import mocked_publish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    import sqlalchemy as sa
    from fedora_messaging.message import Message
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session, scoped_session

    from consumer_framework.settings import OutboxSettings

    from .store import OutboxStore

    AnySession: TypeAlias = Session | scoped_session[Any]

__all__ = ["NotSentError", "Outbox", "Pending", "default", "set_default"]

_PATH = "consumer_config.framework.outbox"


class Outbox(Publisher):
    """Accepts messages for publishing. Several threads and coroutines may use it at once.

    Args:
        database: The URL of the database, or the application's engine. A SQLite file gets its
            tables at the first use; other databases get them from :meth:`OutboxStore.migrate`.
        settings: The table ``[consumer_config.framework.outbox]``.
        exchange: The exchange of messages that name none.
        topic_prefix: Text before each topic, joined with a dot.
        clock: Returns the seconds since the epoch.
        validate: Does the work of ``message.validate()``; None for the outbox's own.
        belongs: As for :class:`.Publisher`.
        opens_late: Open the database when it is first needed, and not now. A process whose messages
            belong to handlers imports no SQLAlchemy until then.

    Raises:
        ConfigurationError: The database is none that an outbox can be in, or its driver is missing.
    """

    def __init__(  # noqa: PLR0913 -- each is a value of its own
        self,
        database: str | sa.URL | sa.Engine,
        settings: OutboxSettings | None = None,
        *,
        exchange: str = "amq.topic",
        topic_prefix: str = "",
        clock: Callable[[], float] = time.time,
        validate: Callable[[Message], None] | None = None,
        belongs: Callable[[Sequence[Entry]], bool] | None = None,
        opens_late: bool = False,
    ) -> None:
        super().__init__(
            settings,
            exchange=exchange,
            topic_prefix=topic_prefix,
            clock=clock,
            validate=validate,
            belongs=belongs,
        )
        self._database = database
        self._store: OutboxStore | None = None
        # An application's own database gets none.
        self._makes_tables = self._has_tables = False
        self._preparing = threading.RLock()
        _outboxes.add(self)
        if not opens_late:
            self._open()

    @property
    def store(self) -> OutboxStore:
        """The table."""
        return self._store or self._open()

    @store.setter
    def store(self, store: OutboxStore) -> None:
        self._store = store

    @contextlib.contextmanager
    def replaced_store(self, store: OutboxStore) -> Iterator[None]:
        """Use another table while the block runs, for a test."""
        before, self._store = self._store, store
        try:
            yield
        finally:
            self._store = before

    def _open(self) -> OutboxStore:
        from .store import OutboxStore  # noqa: PLC0415 -- late: see `opens_late`

        database: Any = self._database
        with self._preparing:
            if self._store is None:
                is_engine = hasattr(database, "dialect")
                self._store = OutboxStore(database) if is_engine else OutboxStore.connect(database)
                # The tables of other databases are made when their administrator says so.
                self._makes_tables = not is_engine and self._store.is_sqlite
                self._has_tables = not self._makes_tables
            return self._store

    def prepared(self) -> OutboxStore:
        """Return the table, ready for use: a SQLite file gets it before.

        Raises:
            ConfigurationError: The database is none that an outbox can be in.
            OutboxError: The tables cannot be made.
        """
        store = self.store
        if self._has_tables and not (self._makes_tables and store.lacks_tables):
            return store
        with self._preparing:
            store.migrate()
            store.lacks_tables = False
            self._has_tables = True
        return store

    def close(self) -> None:
        """Close the connections that are the outbox's own."""
        if self._store is not None:
            self._store.close()

    def publish(  # noqa: PLR0913 -- the keyword arguments are choices
        self,
        message: Message,
        ordering_key: str | None = None,
        *,
        session: AnySession | None = None,
        connection: sa.Connection | None = None,
        exchange: str | None = None,
        timeout: float = TIMEOUT,
    ) -> Outgoing:
        """Accept *message* for publishing.

        Args:
            message: An instance of any message class. It is not changed.
            ordering_key: Messages with the same key are sent in the order of publishing.
            session: Store it in the transaction of this session; nothing is committed.
            connection: Store it in the transaction of this connection; nothing is committed.
            exchange: The exchange; None for the one of the configuration.
            timeout: Seconds to wait with ``on_failure = "wait"``.

        Returns:
            The message as it will be sent.

        Raises:
            fedora_messaging.exceptions.ValidationError: It does not fit its schema. Nothing is
                stored.
            PublishError: It can never be sent. Nothing is stored.
            OutboxError: The database did not take it. Nothing is stored.
            NotSentError: With ``on_failure = "wait"``: it is stored, and not sent in time.
            sqlalchemy.exc.SQLAlchemyError: The database of *session* or *connection* did not take
                it; the caller's transaction fails.
        """
        entry = self._entry(message, ordering_key, exchange)
        if (mock := mocked_publish()) is not None:
            mock(message, exchange)
            return entry[0]
        if session is not None:
            connection = session.connection()
        if connection is not None:
            entry = self._enriched(entry)
            self.store.insert(connection, [entry])
        else:
            self.accept([entry], timeout)
        return entry[0]

    async def publish_async(  # noqa: PLR0913 -- the keyword arguments are choices
        self,
        message: Message,
        ordering_key: str | None = None,
        *,
        session: AsyncSession | None = None,
        connection: AsyncConnection | None = None,
        exchange: str | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109 -- it does not cancel
    ) -> Outgoing:
        """Accept *message* for publishing, without blocking the event loop.

        The arguments and errors are those of :meth:`publish`; session and connection are the
        asynchronous ones of SQLAlchemy. If the coroutine is cancelled meanwhile, the message may
        be stored or not.
        """
        entry = self._entry(message, ordering_key, exchange)
        if (mock := mocked_publish()) is not None:
            mock(message, exchange)
        elif session is not None:
            entry, insert = self._enriched(entry), self.store.insert
            await session.run_sync(lambda inner: insert(inner.connection(), [entry]))
        elif connection is not None:
            entry = self._enriched(entry)
            await connection.run_sync(self.store.insert, [entry])
        else:
            await self.accept_async([entry], timeout)
        return entry[0]

    @contextlib.contextmanager
    def transaction(self, timeout: float = TIMEOUT) -> Iterator[Pending]:
        """Store all messages that the block publishes, in one transaction at its end.

        If the block raises, none is stored. Blocks may be nested: the outermost one stores. Threads
        that the block starts are not part of it.

        Raises:
            OutboxError: None of the messages was stored.
        """
        with self.collect() as pending:
            yield pending
        pending.commit(timeout)

    @contextlib.asynccontextmanager
    async def transaction_async(
        self,
        timeout: float = TIMEOUT,  # noqa: ASYNC109 -- it does not cancel
    ) -> AsyncIterator[Pending]:
        """Do the same as :meth:`transaction`, without blocking the event loop."""
        with self.collect() as pending:
            yield pending
        await self.in_thread(pending.commit, timeout)

    def _put(self, messages: list[Entry]) -> None:
        self.store.put(messages)

    def _last_row(self) -> int:
        return self.store.last_row()

    def _state_of(self, message_id: str, since: int) -> tuple[str, str] | None:
        return self.store.state_of(message_id, since)

    def store_now(self, messages: list[Entry], timeout: float = TIMEOUT) -> None:
        """Store messages at once; a SQLite file gets its tables before."""
        self.prepared()
        super().store_now(messages, timeout)


_default: Outbox | None = None
# The last one that the configuration file describes.
_of_file: Outbox | None = None
_default_lock = threading.Lock()
_outboxes: weakref.WeakSet[Outbox] = weakref.WeakSet()


def default() -> Outbox:
    """Return the outbox of this process, as the configuration file describes it.

    The file is fedora-messaging's: ``$FEDORA_MESSAGING_CONF``, or
    ``/etc/fedora-messaging/config.toml``.

    Raises:
        ConfigurationError: The configuration names no database, or one that cannot be used.
    """
    global _default, _of_file  # noqa: PLW0603 -- one for each process, as fedora-messaging has it
    with _default_lock:
        if _default is None and mocked_publish() is not None:
            # Nothing is stored: a test needs no database.
            return Outbox("sqlite://", opens_late=True)
        if _default is None:
            try:
                _default = _of_file = _configured(upstream_config.conf)
            except ConfigurationError as error:
                raise ConfigurationError(*error.problems, source=_source()) from error
        return _default


def default_for(function: str, message: Message) -> Outbox:
    """Return :func:`default` for *message*, unless a test refuses it.

    Args:
        function: The name of the function that publishes the message, for the refusal.
        message: The message.
    """
    is_of_test = mocked_publish() is not None or _default not in (None, _of_file)
    if mocks.refusal is not None and not is_of_test:
        mocks.refusal(f"consumer_framework.publishing.{function}", message)
    return default()


def _source() -> str:
    """Return the file that fedora-messaging reads, and say so if there is none."""
    path = os.environ.get("FEDORA_MESSAGING_CONF") or "/etc/fedora-messaging/config.toml"
    return path if Path(path).exists() else f"{path} (there is no such file)"


def set_default(outbox: Outbox | None) -> Outbox | None:
    """Make *outbox* the one of this process, and return the one before.

    Args:
        outbox: None for the one that the configuration file describes.
    """
    global _default
    with _default_lock:
        before, _default = _default, outbox
        return before


def _forked() -> None:
    global _default_lock  # noqa: PLW0603 -- a thread of the parent may hold it
    _default_lock = threading.Lock()
    for outbox in list(_outboxes):
        outbox._preparing = threading.RLock()  # noqa: SLF001 -- this module's own


os.register_at_fork(after_in_child=_forked)


def _configured(conf: Mapping[str, Any]) -> Outbox:
    settings = outbox_settings(conf)
    return Outbox(
        database_of(settings),
        settings,
        exchange=conf["publish_exchange"],
        topic_prefix=conf["topic_prefix"],
    )


def database_of(settings: OutboxSettings) -> str:
    """Return the URL of the outbox's database.

    Raises:
        ConfigurationError: The settings name none, and there is no state directory.
    """
    if settings.database is not None:
        from .database import create_engine  # noqa: PLC0415 -- late: it imports SQLAlchemy

        url = create_engine(settings.database).url
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_absolute():
            cure = "write sqlite:////PATH, with four slashes: the relay has another directory"
            raise ConfigurationError(Problem(f"{_PATH}.database", "is no absolute path", cure))
        if url.password:
            for form in {str(url.password), unquote(str(url.password))}:
                secrets.hide(form, "the password of the outbox's database")
        return settings.database
    directory = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if not directory:
        cure = 'set it to a URL such as "sqlite:////var/lib/NAME/outbox.sqlite3"'
        raise ConfigurationError(Problem(f"{_PATH}.database", "is not set", cure))
    return f"sqlite:///{directory}/{FILE}"
