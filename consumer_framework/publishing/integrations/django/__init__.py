# SPDX-License-Identifier: GPL-2.0-or-later
"""An outbox in the databases of a Django project: ``publish()`` inside ``transaction.atomic()``.

::

    INSTALLED_APPS = [..., "consumer_framework.publishing.integrations.django"]

    with transaction.atomic():
        book.save()
        publish(BookSaved(body={"title": book.title}))

``manage.py migrate`` makes the tables. Messages go through Django's own connection, so they share
the fate of its transaction. The relay is another process, with the URL of the same database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedora_messaging.message import Message

    from consumer_framework.publishing.message import Outgoing

__all__ = ["publish", "publish_async"]


def publish(
    message: Message, ordering_key: str | None = None, *, using: str | None = None, **options: Any
) -> Outgoing:
    """Accept *message* for publishing, in the transaction of a Django database if there is one.

    Args:
        message: An instance of any message class. It is not changed.
        ordering_key: Messages with the same key are sent in the order of publishing.
        using: The alias of the database. None for the one that the database routers name for the
            model ``OutboxMessage``: ``"default"`` without a router.
        options: ``exchange``, the exchange, instead of the one of the settings; ``timeout``, the
            seconds to wait with ``on_failure = "wait"`` outside a transaction.

    Returns:
        The message as it will be sent.

    Raises:
        fedora_messaging.exceptions.ValidationError: It does not fit its schema. Nothing is stored.
        PublishError: It can never be sent. Nothing is stored.
        OutboxError: The database did not take it. Nothing is stored.
        NotSentError: With ``on_failure = "wait"``: it is stored, and not sent in time.
        django.core.exceptions.ImproperlyConfigured: ``FM_OUTBOX`` of the settings is wrong.
    """
    # Late: Django imports this package before its models may be imported.
    from .outbox import outbox  # noqa: PLC0415

    return outbox(using).publish(message, ordering_key, **options)


async def publish_async(
    message: Message, ordering_key: str | None = None, *, using: str | None = None, **options: Any
) -> Outgoing:
    """Do the same as :func:`publish`, without blocking the event loop.

    Outside a request it commits by itself, because Django has no transactions for coroutines.
    """
    from .outbox import outbox  # noqa: PLC0415 -- as above

    return await outbox(using).publish_async(message, ordering_key, **options)
