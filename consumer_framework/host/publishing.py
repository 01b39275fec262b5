# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuses ``fedora_messaging.api.publish`` where it cannot work, before anything is sent.

It blocks until the event loop has sent the message. On the loop's own thread that is for ever, and
fedora-messaging notices only after it has told the loop to send.
"""

from __future__ import annotations

import threading
from typing import Any

from fedora_messaging import api

_BLOCKS = (
    "api.publish() would block the event loop that is to send the message, so nothing was sent; "
    "in a coroutine write: "
    "await api.twisted_publish(message).asFuture(asyncio.get_running_loop())"
)
_NO_CONNECTION = (
    "there is no connection to the broker yet, or not any more, so nothing was sent; "
    "publish from the handler, not from __init__, setup or when a module is imported"
)


def refuse_early() -> None:
    """Let ``api.publish`` raise RuntimeError where it cannot work."""
    publish = api._twisted_publish_wrapper  # noqa: SLF001
    if getattr(publish, "is_checked", False):
        return

    def checked(*arguments: Any, **named: Any) -> Any:
        if api._twisted_service is None:  # noqa: SLF001 -- the runner sets it
            raise RuntimeError(_NO_CONNECTION)
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError(_BLOCKS)
        return publish(*arguments, **named)

    checked.is_checked = True  # type: ignore[attr-defined]
    api._twisted_publish_wrapper = checked  # noqa: SLF001
