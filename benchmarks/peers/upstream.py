# SPDX-License-Identifier: GPL-2.0-or-later
"""Callbacks for `fedora-messaging consume`, in each of its forms."""

from typing import Any

from benchmarks.peers.tally import TALLY


def function(message: Any) -> None:
    """Handle a message, in a thread."""
    TALLY.handled(message._headers)  # noqa: SLF001


class Callback:
    """A class without arguments, whose instance handles messages in a thread."""

    def __call__(self, message: Any) -> None:
        """Handle a message."""
        TALLY.handled(message._headers)  # noqa: SLF001


async def coroutine(message: Any) -> None:
    """Handle a message, on the loop."""
    TALLY.handled(message._headers)  # noqa: SLF001
