# SPDX-License-Identifier: GPL-2.0-or-later
"""Publishing: a message that was accepted is sent, once or more, whatever dies in between.

::

    publish(message, ordering_key=None)     from a handler, a coroutine, a web application, a script
       │ validate, serialise, check the size          errors are raised here: nothing is stored
       ▼
    outbox: one table in the database of the caller      in the caller's transaction, or an own file
       ▼ the relay claims rows in order, sends batches, marks rows
    messenger: amqp, fedora, kombu, proton, stomp, fedmsg, dummy, capture

- :mod:`.message` turns a message into bytes and finds its faults.
- :mod:`.collecting` collects the messages of a block, and stores them.
- :mod:`.store` is the table of the outbox, in SQLite, PostgreSQL or MariaDB. It is made of
  :mod:`.tables`, :mod:`.database` and :mod:`.claims`.
- :mod:`.outbox` is the interface of applications: ``publish``, transactions.
- :mod:`.relay` sends from the store through a messenger, and marks. It tells its
  observers the :mod:`.events`, and keeps its claims by :mod:`.extending`.
- :mod:`.direct` sends at once, without an outbox, for scripts that can wait and repeat.
- :mod:`.messengers` are the ways to send.
- :mod:`.integrations` join an outbox to web frameworks, and to the settings of others.

Nothing here imports the runtime: web applications and scripts use it without a reactor.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from fedora_messaging.message import Message

    from .direct import Sender, SendError
    from .message import NotSentError, OutboxError, Outgoing, PublishError
    from .outbox import Outbox, default, set_default

__all__ = [
    "NotSentError",
    "Outbox",
    "OutboxError",
    "Outgoing",
    "PublishError",
    "SendError",
    "default",
    "publish",
    "publish_async",
    "sender",
    "set_default",
]

# The outbox of an instance that names no database, in its state directory.
FILE = "outbox.sqlite3"

# Late: a program that does not publish needs none of them.
_MODULES = {
    "NotSentError": "message",
    "Outbox": "outbox",
    "OutboxError": "message",
    "Outgoing": "message",
    "PublishError": "message",
    "SendError": "direct",
    "default": "outbox",
    "set_default": "outbox",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def publish(message: Message, ordering_key: str | None = None, **options: Any) -> Outgoing:
    """Accept *message* for publishing, by the outbox that the configuration file describes.

    The file is fedora-messaging's: ``$FEDORA_MESSAGING_CONF``, or
    ``/etc/fedora-messaging/config.toml``.
    The errors are those of ``Outbox.publish``, too.

    Args:
        message: An instance of any message class. It is not changed.
        ordering_key: Messages with the same key are sent in the order of publishing.
        options: Keyword arguments of ``Outbox.publish``: session, connection, exchange, timeout.

    Raises:
        ConfigurationError: The file cannot be used, or names no database.
    """
    from .outbox import default_for  # noqa: PLC0415 -- late, as above

    return default_for("publish", message).publish(message, ordering_key, **options)


async def publish_async(
    message: Message, ordering_key: str | None = None, **options: Any
) -> Outgoing:
    """Do the same as :func:`publish`, without blocking the event loop."""
    from .outbox import default_for  # noqa: PLC0415 -- as above

    outbox = default_for("publish_async", message)
    return await outbox.publish_async(message, ordering_key, **options)


def sender(conf: Path | str | None = None, *, timeout: float = 30.0) -> Sender:
    """Return a sender, which sends at once and waits for the broker; see :func:`.direct.sender`."""
    from .direct import sender as made  # noqa: PLC0415 -- as above

    return made(conf, timeout=timeout)
