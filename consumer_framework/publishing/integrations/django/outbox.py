# SPDX-License-Identifier: GPL-2.0-or-later
"""The outbox of one Django database, through Django's own connection.

Inside a transaction of that connection a message is inserted at once, so that the end of the
transaction, or of a savepoint in it, decides. Outside, the block of the request collects it, or it
is committed by itself.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DatabaseError, connections, router, transaction
from django.dispatch import receiver
from fedora_messaging import config as upstream_config

from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.secrets import redact
from consumer_framework.publishing.collecting import (
    TIMEOUT,
    Entry,
    Headers,
    Pending,
    Publisher,
)
from consumer_framework.publishing.integrations.requests import commit
from consumer_framework.publishing.message import OutboxError
from consumer_framework.publishing.mocks import mocked_publish
from consumer_framework.settings import outbox_settings, outbox_table

from .models import OutboxMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedora_messaging.message import Message

    from consumer_framework.publishing.message import Outgoing

__all__ = ["DjangoOutbox", "RequestBlock", "make", "outbox"]

_SETTING = "FM_OUTBOX"
_KEYS = ("publish_exchange", "topic_prefix")


class DjangoOutbox(Publisher):
    """Accepts messages for publishing, in one database of the project.

    Args:
        using: The alias of the database.
        options: Those of :class:`.Publisher`.

    Attributes:
        using: The alias of the database.
    """

    def __init__(self, using: str, settings: Any = None, **options: Any) -> None:
        super().__init__(settings, **options)
        self.using = using

    def publish(
        self,
        message: Message,
        ordering_key: str | None = None,
        *,
        exchange: str | None = None,
        timeout: float = TIMEOUT,
    ) -> Outgoing:
        """Accept *message* for publishing: see :func:`.integrations.django.publish`."""
        entry = self._entry(message, ordering_key, exchange)
        if (mock := mocked_publish()) is not None:
            mock(message, exchange)
        else:
            self.accept([entry], timeout)
        return entry[0]

    async def publish_async(
        self,
        message: Message,
        ordering_key: str | None = None,
        *,
        exchange: str | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109 -- it does not cancel
    ) -> Outgoing:
        """Do the same as :meth:`publish`, without blocking the event loop."""
        entry = self._entry(message, ordering_key, exchange)
        if (mock := mocked_publish()) is not None:
            mock(message, exchange)
        else:
            await self.accept_async([entry], timeout)
        return entry[0]

    @property
    def is_in_transaction(self) -> bool:
        """True if a transaction that the application began decides about an insert now.

        The transaction that ``django.test.TestCase`` puts around a test is not one of those.
        """
        connection = connections[self.using]
        if connection.in_atomic_block:
            blocks = connection.atomic_blocks
            return any(not getattr(block, "_from_testcase", False) for block in blocks)
        return not connection.get_autocommit()

    def roll_back(self) -> None:
        """Let the transaction that runs end in a rollback, even if its exception is answered."""
        connection = connections[self.using]
        if connection.in_atomic_block:
            connection.set_rollback(True)

    def accept(self, messages: list[Entry], timeout: float = TIMEOUT) -> None:
        """Store messages in the transaction if there is one; see :meth:`.Publisher.accept`."""
        if not self.is_in_transaction:
            super().accept(messages, timeout)
        elif isinstance(block := self.current(), RequestBlock):
            block.insert(messages)
        else:
            self.insert(messages)

    def insert(self, messages: list[Entry]) -> list[OutboxMessage]:
        """Insert *messages* in the transaction that runs, or in one of their own.

        Raises:
            OutboxError: The database did not take them.
        """
        rows = [_row(message, on_failure) for message, on_failure in messages]
        with self._told(), transaction.atomic(using=self.using, savepoint=False):
            for row in rows:
                row.save(using=self.using, force_insert=True)
            connection = connections[self.using]
            if connection.vendor == "postgresql":
                # It wakes the relay; PostgreSQL delivers it when the transaction commits.
                with connection.cursor() as cursor:
                    cursor.execute("NOTIFY fm_outbox")
        return rows

    def store_now(self, messages: list[Entry], timeout: float = TIMEOUT) -> None:
        """Store messages in one transaction; outside of one, wait as the settings say."""
        if self.is_in_transaction:
            self.insert(messages)
        else:
            super().store_now(messages, timeout)

    def _put(self, messages: list[Entry]) -> None:
        self.insert(messages)

    def _last_row(self) -> int:
        with self._told():
            return self.rows.order_by("-id").values_list("id", flat=True).first() or 0

    def _state_of(self, message_id: str, since: int) -> tuple[str, str] | None:
        with self._told():
            found = self.rows.filter(id__gt=since, message_id=message_id).order_by("id")
            row = found.values_list("state", "reason").first()
        return None if row is None else (row[0], row[1] or "")

    @property
    def rows(self) -> Any:
        """The rows of the table, as a query of Django."""
        return OutboxMessage.objects.using(self.using)

    async def in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call *function* in the thread of synchronous code, to which connections belong."""
        await sync_to_async(function, thread_sensitive=True)(*arguments)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an error of the database into one line."""
        try:
            yield
        except DatabaseError as error:
            line = redact(" ".join(str(error).split()))
            is_missing = "fm_outbox" in line and "lock" not in line.lower()
            cure = f"; run manage.py migrate --database={self.using}" if is_missing else ""
            raise OutboxError(f"the outbox in the database {self.using!r}: {line}{cure}") from error


class RequestBlock(Pending):
    """The messages of one request in one database.

    Args:
        outbox: The outbox of the database.
        headers: Returns further headers of a message.
        timeout: Seconds to wait for messages with ``on_failure = "wait"``.

    Attributes:
        outbox: The outbox of the database.
    """

    def __init__(
        self, outbox: DjangoOutbox, headers: Callable[[Outgoing], Headers], timeout: float
    ) -> None:
        super().__init__(outbox, outbox.current(), headers)
        self.outbox = outbox
        self._timeout = timeout
        self._is_atomic = False
        # Rows in the transaction of the request. A savepoint may have taken some of them back.
        self._inserted: list[tuple[OutboxMessage, Entry]] = []

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        """Put the request into one transaction, with the messages that were published before."""
        with transaction.atomic(using=self.outbox.using):
            self._is_atomic = True
            earlier, self.messages = self.messages, []
            self.insert(earlier)
            yield

    def insert(self, messages: list[Entry]) -> None:
        """Insert *messages* in the transaction that runs.

        In the transaction of the request they are changed, or deleted, at its end. Any other ends
        before the request does.
        """
        if self._is_atomic:
            self._inserted += zip(self.outbox.insert(messages), messages, strict=True)
            return
        self.outbox.insert([self.enriched(entry) for entry in messages])

    def finish(self, *, succeeded: bool) -> None:
        """Keep the messages if the request *succeeded*, otherwise discard them.

        Raises:
            OutboxError: None of those outside a transaction was stored.
            PublishError: A header that was to be added cannot be sent.
        """
        try:
            # A broken transaction runs no more statements, and takes the rows with it.
            if self._inserted and not connections[self.outbox.using].needs_rollback:
                (self._enrich_inserted if succeeded else self._delete_inserted)()
            if succeeded:
                commit(self, self._timeout)
        finally:
            self.close()

    def _enrich_inserted(self) -> None:
        for row, entry in self._inserted:
            changed, _ = self.enriched(entry)
            if changed is not entry[0]:
                headers = json.dumps(dict(changed.headers))
                self.outbox.rows.filter(pk=row.pk).update(headers=headers)

    def _delete_inserted(self) -> None:
        for row, _ in self._inserted:
            self.outbox.rows.filter(pk=row.pk).delete()


def _row(message: Outgoing, on_failure: str) -> OutboxMessage:
    return OutboxMessage(
        message_id=message.id,
        topic=message.topic,
        exchange=message.exchange,
        body=message.body,
        headers=json.dumps(dict(message.headers)),
        priority=message.priority,
        ordering_key=message.ordering_key,
        created=message.created,
        on_failure=on_failure,
    )


_outboxes: dict[str, DjangoOutbox] = {}


def outbox(using: str | None = None) -> DjangoOutbox:
    """Return the outbox of a database of the project.

    Args:
        using: Its alias; None for the one that the database routers name.

    Raises:
        django.core.exceptions.ImproperlyConfigured: ``FM_OUTBOX`` of the settings is wrong.
    """
    alias = using or router.db_for_write(OutboxMessage)
    # Two threads may both make one: the first is kept.
    return _outboxes.get(alias) or _outboxes.setdefault(alias, make(alias))


def make(using: str) -> DjangoOutbox:
    """Make the outbox of the database *using* as the project's settings describe it."""
    table = getattr(settings, _SETTING, None)
    try:
        if table is None:
            conf = upstream_config.conf
            own, parsed = {key: conf[key] for key in _KEYS}, outbox_settings(conf)
        else:
            own, rest = _own_keys(table)
            parsed = outbox_table(rest, _SETTING)
    except ConfigurationError as error:
        raise ImproperlyConfigured(str(error)) from error
    exchange, prefix = (own[key] for key in _KEYS)
    return DjangoOutbox(using, parsed, exchange=exchange, topic_prefix=prefix)


def _own_keys(table: Any) -> tuple[dict[str, str], Any]:
    """Return the keys of the file's top level that may stand in *table*, and the rest of it."""
    own = {"publish_exchange": "amq.topic", "topic_prefix": ""}
    if not isinstance(table, dict):
        return own, table
    own |= {key: table[key] for key in _KEYS if key in table}
    for key, value in own.items():
        if not isinstance(value, str):
            raise ConfigurationError(Problem(f"{_SETTING}.{key}", "is no text", "put it in quotes"))
    return own, {key: value for key, value in table.items() if key not in own}


@receiver(setting_changed)
def _changed(*, setting: str, **_: Any) -> None:
    """Let ``override_settings`` of a test have its effect."""
    if setting in {_SETTING, "DATABASES"}:
        _outboxes.clear()
