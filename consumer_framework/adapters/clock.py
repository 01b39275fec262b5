# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's clock."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class SystemClock:
    """A :class:`.Clock` that reads the machine's, and waits on asyncio's running event loop."""

    # Every delivery asks several times: not even a call of Python's more.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, function: Callable[[], object]) -> asyncio.TimerHandle:
        """Call *function* in *seconds*."""
        return asyncio.get_running_loop().call_later(seconds, function)

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future of the running event loop."""
        return asyncio.get_running_loop().create_future()
