# SPDX-License-Identifier: GPL-2.0-or-later
"""Callbacks for `fedora-messaging consume`, which `fm-consumer run` takes unchanged.

fm-consumer run --conf examples/sample.toml --callback-file examples/functions.py:show
"""

import asyncio

from fedora_messaging import config
from fedora_messaging.message import Message


# A function runs in a thread, so it may block.
def show(message: Message) -> None:
    """Print the summary of a message."""
    print(message.summary, flush=True)


# A coroutine function runs on the event loop, so it must await and never block.
async def show_later(message: Message) -> None:
    """Print the summary of a message a moment later."""
    await asyncio.sleep(0.1)
    print(message.summary, flush=True)


# A class without constructor arguments keeps state, and reads the settings by itself.
class Numbered:
    """Number the messages; `start` in `[consumer_config]` is the first number."""

    def __init__(self) -> None:
        self.number: int = config.conf["consumer_config"].get("start", 1)

    def __call__(self, message: Message) -> None:
        """Print the number and the summary of a message."""
        print(f"{self.number}. {message.summary}", flush=True)
        self.number += 1
