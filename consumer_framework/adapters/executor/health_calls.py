# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls the author's ``health()`` now and then, and remembers the fault that it reports.

A call never holds anything up. A plain function runs in a daemon thread of its own. A call that
takes too long is a fault, and no further one begins before it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from consumer_framework.author.handler import is_coroutine_callable
from consumer_framework.core.attempt import one_line
from consumer_framework.core.text import clipped, duration_text, printable

from .run import awaited, returned_or_raised

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

# Characters of a fault that are shown.
LONGEST = 300
# Seconds in which a handler without a health() is looked at again: a reload may bring another.
_LOOK = 5.0


class HealthCalls:
    """The calls of ``health()``, in a task of the event loop.

    Args:
        function: Returns the ``health`` of the present handler; None where there is none.
        times: Returns the seconds between two calls, and the seconds that a call may take.

    Attributes:
        fault: The fault that the last call reported, in one line; "" for none.
    """

    def __init__(
        self,
        function: Callable[[], Callable[[], Any] | None],
        times: Callable[[], tuple[float, float]],
    ) -> None:
        self.fault = ""
        self._function = function
        self._times = times
        self._task: asyncio.Task[None] | None = None
        # Cleared while a thread has a call.
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def start(self) -> None:
        """Begin to call; use it on the event loop's thread while the loop runs."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._call_for_ever())

    def stop(self) -> None:
        """Call no more; the result of a call that is under way is ignored."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _call_for_ever(self) -> None:
        while True:
            function = self._function()
            if function is None:
                self.fault = ""
                await asyncio.sleep(_LOOK)
            else:
                await self._call(function)
                await asyncio.sleep(self._times()[0])

    async def _call(self, function: Callable[[], Any]) -> None:
        """Call *function*, note the fault, and wait for the end of the call."""
        patience = self._times()[1]
        call = asyncio.create_task(self._called(function))
        try:
            done, _ = await asyncio.wait([call], timeout=patience)
            if not done:
                self._note(f"health() takes longer than {duration_text(patience)}")
                call.cancel()
                await asyncio.wait([call])
        finally:
            call.cancel()
        await self._is_idle.wait()
        # Another handler may have taken over meanwhile.
        if done and function == self._function():
            value, error = call.result()
            self._note(_fault_of(value, error), error)

    async def _called(self, function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Return the object that *function* returned, or the exception that it raised."""
        try:
            if is_coroutine_callable(function):
                returned = function()
            else:
                returned, error = await self._in_thread(function)
                if error is not None:
                    return None, error
            return await awaited(returned), None
        except BaseException as error:  # noqa: BLE001 -- the author's code, and its sys.exit()
            return None, error

    def _in_thread(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            result = returned_or_raised(function)
            # The loop may be closed by now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, result)

        def tell(result: object) -> None:
            self._is_idle.set()
            if not ended.done():
                ended.set_result(result)

        threading.Thread(target=work, name="health", daemon=True).start()
        self._is_idle.clear()
        return ended

    def _note(self, fault: str, error: BaseException | None = None) -> None:
        former, self.fault = self.fault, fault
        # Not each time that the words change: they may have a number that grows.
        if fault and not former:
            _log.warning("the consumer is not well: %s", fault, exc_info=error)
        elif former and not fault:
            _log.info("the consumer is well again: health() reports no fault")


def _fault_of(returned: Any, error: BaseException | None) -> str:
    if error is not None:
        text = one_line(error)
    elif returned is None or isinstance(returned, str):
        text = returned or ""
    else:
        # Its repr may raise.
        kind = type(returned).__name__
        text = f"health() returned an object of type {kind}: return None, or the fault as text"
    return printable(clipped(" ".join(text.split()), LONGEST))
