# SPDX-License-Identifier: GPL-2.0-or-later
"""Several messages that a handler gets at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedora_messaging.message import Message


class Batch(Sequence["Message"]):
    """The messages of one call of ``handle_batch``, each with its own fate.

    A batch handler that returns has handled every message, except those it has called
    :meth:`fail` for. One that raises has failed with all the others.

    Args:
        messages: In the order in which they came.
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
        """Say that *message* was not handled.

        Args:
            message: One of the batch, the very object.
            error: What ``handle`` would have raised for it: a signal, or anything else. The
                last one counts.

        Raises:
            ValueError: *message* is not in the batch.
        """
        for index, own in enumerate(self._messages):
            if own is message:
                self._errors[index] = error
                return
        raise ValueError("this message is not in the batch")

    def error_of(self, index: int) -> BaseException | None:
        """What the message at *index* failed with, as far as :meth:`fail` was told."""
        return self._errors.get(index)
