# SPDX-License-Identifier: GPL-2.0-or-later
"""Record the messages that code under test publishes, in the place of a database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, overload

from .late_imports import when_imported
from .message import restored
from .mocks import mocked_publish
from .outbox import Outbox, set_default

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fedora_messaging.message import Message

    from .collecting import Entry
    from .message import Outgoing


class CapturedMessages(Sequence["Message"]):
    """The messages that were published, in their order, each as its receiver would get it.

    Attributes:
        entries: The same messages as an outbox stores them, each with its ``on_failure``.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @property
    def outgoing(self) -> list[Outgoing]:
        """The messages with all that is sent: the ordering key, the exchange, the headers."""
        return [message for message, _ in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...

    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [restored(message) for message, _ in self.entries[index]]
        return restored(self.entries[index][0])

    def __eq__(self, other: object) -> bool:
        return list(self) == other if isinstance(other, list) else self is other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


class CapturingStore:
    """The part of an outbox's table that a publisher uses, in a list.

    Args:
        captured: Gets the messages.
    """

    lacks_tables = False

    def __init__(self, captured: CapturedMessages) -> None:
        self._captured = captured

    def put(self, messages: Iterable[Entry]) -> None:
        """Record *messages*."""
        self._captured.entries += messages

    def insert(self, _connection: Any, messages: Iterable[Entry]) -> None:
        """Record *messages*, whatever becomes of the transaction of the connection."""
        self.put(messages)

    def migrate(self) -> None:
        """Do nothing: there is no table."""

    def last_row(self) -> int:
        """Return 0: no row waits."""
        return 0

    def state_of(self, _message_id: str, _since_row: int) -> None:
        """Return None, as for a message that is sent."""

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def capture_outbox(outbox: Outbox | None = None) -> Iterator[CapturedMessages]:
    """Record the messages that the block publishes; nothing is stored or sent.

    ::

        with capture_outbox() as published:
            order(build)
        assert [message.topic for message in published] == ["org.example.build.ordered"]

    Without *outbox*, the messages of ``fedora_messaging.api`` are recorded, too.

    A block of :meth:`.Outbox.transaction` that raises publishes nothing. A message that was
    published in a session of SQLAlchemy is recorded at once, also if the session is rolled back.

    Args:
        outbox: The outbox of the application; None for the one of the process, which needs no
            configuration then.

    Yields:
        The messages so far.
    """
    captured = CapturedMessages()
    store: Any = CapturingStore(captured)
    if outbox is not None:
        with outbox.replaced_store(store):
            yield captured
        return
    own = Outbox("sqlite://", opens_late=True)
    own.store = store
    with ExitStack() as stack:
        stack.callback(set_default, set_default(own))
        if mocked_publish() is None:
            give_up = when_imported("fedora_messaging.api", lambda _: _record_upstream(own, stack))
            stack.callback(give_up)
        yield captured


def _record_upstream(outbox: Outbox, stack: ExitStack) -> None:
    # Late: it imports Twisted, which a web application may not need.
    from .upstream import recorded  # noqa: PLC0415

    publish = recorded(lambda message, exchange: outbox.publish(message, exchange=exchange))
    stack.enter_context(publish)
