# SPDX-License-Identifier: GPL-2.0-or-later
"""The messengers that send nothing: ``dummy`` counts, ``capture`` records for tests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from . import EVERYTHING, Endpoints, Sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer_framework.publishing.message import Outgoing

    from . import Feature, Result

_log = logging.getLogger(__name__)


class Dummy:
    """Takes every message and sends none, as PDC's messenger of the same name.

    Attributes:
        count: The number of messages so far.
    """

    features: frozenset[Feature] = EVERYTHING

    def __init__(self, endpoints: Endpoints | None = None) -> None:
        self.endpoints = endpoints
        self.count = 0

    def open(self) -> None:
        """Connect to nothing."""

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Count *batch*, and write a line for each message to the log at the level DEBUG."""
        for message in batch:
            self.count += 1
            _log.debug("message %s (%s) is not sent: dummy messenger", message.id, message.topic)
        return [Sent() for _ in batch]

    def close(self) -> None:
        """Close nothing."""


class Capture(Dummy):
    """Records every message, for tests.

    Attributes:
        sent: The messages in the order in which they were sent.
    """

    def __init__(self, endpoints: Endpoints | None = None) -> None:
        super().__init__(endpoints)
        self.sent: list[Outgoing] = []

    def send_many(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Record *batch*."""
        self.sent += batch
        return super().send_many(batch)
