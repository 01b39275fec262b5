# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages that a batch handler gets at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedora_messaging.message import Message


class Batch(Sequence["Message"]):
    """The messages of one call of ``handle_batch``, each with an outcome of its own.

    A batch handler that returns has handled every message, except those for which it called
    :meth:`fail`. A batch handler that raises has failed with all the others.

    Args:
        messages: The messages, in the order in which they came.
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages = list(messages)
        self._errors: dict[int, BaseException] = {}

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...

    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return self._messages[index]

    def fail(self, message: Message, error: BaseException) -> None:
        """Mark *message* as not handled. A second call for a message replaces the error.

        Args:
            message: An object of this batch. An equal message that is another object is refused.
            error: The exception that ``handle`` would have raised for the message: a signal such
                as :class:`.Retry`, or any other exception.

        Raises:
            ValueError: *message* is not in the batch.
        """
        for index, own in enumerate(self._messages):
            if own is message:
                self._errors[index] = error
                return
        raise ValueError("this message is not in the batch")

    def error_of(self, index: int) -> BaseException | None:
        """Return the error that :meth:`fail` got for the message at *index*, or None."""
        return self._errors.get(index)
