# SPDX-License-Identifier: GPL-2.0-or-later
"""Records the messages that a handler publishes with ``fedora_messaging.api.publish`` in a test."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from fedora_messaging import api

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedora_messaging.message import Message


class _Published:
    """The result of one publish: it is there at once."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def wait(self, timeout: float) -> None:  # noqa: ARG002 -- upstream passes it by its name
        """Raise what the publish raised."""
        if self._error is not None:
            raise self._error

    def original_failure(self) -> None:
        """Return nothing: the error is raised as it is, and has its own traceback."""


@contextmanager
def recorded(messages: list[Message]) -> Iterator[None]:
    """Append what is published to *messages* inside the block, instead of sending it.

    As with a broker, a message that does not fit its schema raises the ``ValidationError`` of
    jsonschema, and fedora-messaging's signals are sent before and after.
    """

    def publish(message: Message, exchange: str | None) -> _Published:  # noqa: ARG001
        api.pre_publish_signal.send(api.publish, message=message)
        try:
            message.validate()
        except Exception as error:  # noqa: BLE001 -- the caller gets it
            api.publish_failed_signal.send(api.publish, message=message, reason=error)
            return _Published(error)
        messages.append(message)
        api.publish_signal.send(api.publish, message=message)
        return _Published(None)

    # crochet would start a reactor in a thread of its own.
    with (
        mock.patch("crochet.setup"),
        mock.patch.object(api, "_twisted_publish_wrapper", publish),
    ):
        yield
