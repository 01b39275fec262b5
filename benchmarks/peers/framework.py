# SPDX-License-Identifier: GPL-2.0-or-later
"""Handlers for `fm-consumer run`; its functions and coroutines are those of `upstream`."""

import time
from typing import Any

from benchmarks.peers.tally import TALLY
from consumer_framework import Consumer


class Handler(Consumer):
    """Does nothing but count."""

    def handle(self, message: Any) -> None:
        """Handle a message."""
        TALLY.handled(message._headers)  # noqa: SLF001


class Slow(Consumer):
    """Takes 10 ms, as a handler does that waits for another service."""

    def handle(self, message: Any) -> None:
        """Handle a message."""
        time.sleep(0.01)
        TALLY.handled(message._headers)  # noqa: SLF001
