# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the handler and sets it up.

fedora-messaging makes a plain class before its reactor runs: the event loop exists and does not run
yet, so that ``__init__`` may run coroutines on it. :func:`make_early` does the same. A
:class:`.Consumer` is made while the loop runs, and again for as long as a dependency is broken.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from consumer_framework.adapters import codec
from consumer_framework.adapters.executor import Executor, signal_of
from consumer_framework.core import limits
from consumer_framework.core.gate import GateEvent
from consumer_framework.core.recovery import broken_dependency
from consumer_framework.runtime.assembly.loader import is_plain_class

from .deadline import LEASE, RENEWAL
from .tasks import reraise_own_cancellation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer_framework.author.handler import Handler
    from consumer_framework.core.gate import Gate, Reason
    from consumer_framework.core.ports import Chance, FlightRecorder, Notifier, Steps, Traces
    from consumer_framework.runtime.assembly.plan import Plan

_log = logging.getLogger(__name__)


def make_early(plan: Plan, notifier: Notifier) -> Plan:
    """Make the handler of *plan* now if it is an instance of a plain class.

    Call it before the reactor runs, and before signals are caught: SIGTERM ends a slow ``__init__``
    and the process with it.

    Args:
        plan: The plan of this process.
        notifier: Extends the start meanwhile, until ``start_timeout`` is over.

    Returns:
        *plan*, with its handler if that was made.

    Raises:
        BaseException: The error of the author's ``__init__``.
    """
    if plan.target is None or not is_plain_class(plan.target):
        return plan
    loop = asyncio.get_event_loop_policy().get_event_loop()
    with _extended(notifier, plan.framework.start_timeout):
        handler = plan.factory()
    # asyncio.run leaves the thread without a loop.
    asyncio.set_event_loop(loop)
    return replace(plan, factory=lambda: handler)


@contextmanager
def _extended(notifier: Notifier, seconds: float) -> Iterator[None]:
    """Ask the service manager for time from a thread: the caller's is busy."""
    done = threading.Event()

    def ask() -> None:
        for _ in range(int(seconds / RENEWAL)):
            notifier.extend(LEASE)
            if done.wait(RENEWAL):
                return

    threading.Thread(target=ask, name="extension", daemon=True).start()
    try:
        yield
    finally:
        done.set()


class Startup:
    """The author's ``__init__`` and ``setup``, until they succeed.

    Args:
        plan: Makes the handler.
        flight: The flight recorder, for the executor.
        waits: Called with the reason of a wait before another attempt, and with ``""`` at its end.
        gate: Once it is closed, no further attempt is made; the one that is under way goes on.
        chance: Spreads the attempts.
        steps: Remembers the steps that the handler has done; None for no memory.
        traces: Traces the runs of the handler; None for no traces.
    """

    def __init__(  # noqa: PLR0913 -- only the runner makes one
        self,
        plan: Plan,
        flight: FlightRecorder,
        waits: Callable[[str], None],
        gate: Gate,
        chance: Chance = random.random,
        *,
        steps: Steps | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._plan = plan
        self._flight = flight
        self._waits = waits
        self._chance = chance
        self._steps = steps
        self._traces = traces
        self._gate = gate
        self._closing = asyncio.Event()
        gate.listen(self._gate_changed)

    def _gate_changed(self, event: GateEvent, _reason: Reason | None) -> None:
        if event is GateEvent.CLOSE:
            self._closing.set()

    async def run(self) -> tuple[Handler, Executor] | None:
        """Make the handler and set it up.

        Returns:
            The handler and its executor; None if the gate was closed before a success.

        Raises:
            BaseException: The error of the author's code, unless a dependency is at fault.
        """
        attempt = 1
        while True:
            try:
                return await self._try()
            except BaseException as error:
                reraise_own_cancellation(error)
                reason = broken_dependency(signal_of(error), self._plan.policy)
                if reason is None:
                    raise
                _log.debug("attempt %d to set up the handler", attempt, exc_info=error)
            await self._wait(reason, attempt)
            if self._gate.is_closed:
                return None
            attempt += 1

    async def _try(self) -> tuple[Handler, Executor]:
        # Each attempt has a new handler: the former one has the rest of half a set-up.
        handler = self._plan.factory()
        plan, gate = self._plan, self._gate
        executor = Executor(
            handler,
            codec.decode,
            self._flight,
            plan.limits,
            gate,
            steps=self._steps,
            traces=self._traces,
        )
        try:
            await executor.setup()
        except BaseException:
            executor.close()
            raise
        return handler, executor

    async def _wait(self, reason: str, attempt: int) -> None:
        delay = limits.backoff_delay(attempt, self._chance())
        what = f"{reason}; attempt {attempt + 1} in {delay:.0f} s"
        _log.warning("the handler cannot be set up: %s", what)
        self._waits(what)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), delay)
        self._waits("")
