# SPDX-License-Identifier: GPL-2.0-or-later
"""Drains an instance behind its closed gate.

The order: the handler's set-up ends, consuming ends, waiting deliveries go back to the broker,
running ones finish and settle, the author's teardown runs, the relay of the outbox sends the last
messages, the connection and the files close.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from consumer_framework.adapters.amqp.connection import CLOSE_TIMEOUT
from consumer_framework.core.log_fields import fields_of
from consumer_framework.runtime.observe.log import describe

from .publications import LAST_BATCH, LAST_SENDS
from .tasks import from_twisted, reraise_own_cancellation

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumer_framework.core.delivery import Delivery

    from .instance import Instance

_log = logging.getLogger(__name__)

_NOT_COUNTED = "does not count as a crash"
# Seconds for the writes to the outbox: the first one opens the database.
LAST_WRITES = 10.0
# Seconds for the settle and the write to the store after a handler was ended at its deadline.
GRACE = 3.0


class Drain:
    """One drain of an instance; all times are seconds of a clock that never goes back.

    Args:
        instance: The instance, whose gate is closed.
        setup_end: The time by which the handler's set-up has to end.
        teardown_failed: Called with the error of the author's teardown.
    """

    def __init__(
        self,
        instance: Instance,
        setup_end: float,
        teardown_failed: Callable[[BaseException], None],
    ) -> None:
        self._instance = instance
        self._teardown_failed = teardown_failed
        self._awaited = "the handler's setup"
        self._began = self._quiet_since = self._now
        self._end = max(setup_end, self._now) + GRACE

    @property
    def awaited(self) -> str:
        """Name the current step for people."""
        running = len(self._instance.running)
        return f"{running} running" if running else self._awaited

    def end(self) -> float:
        """Return the time by which the current step has to end."""
        executor = self._instance.executor
        deadline = executor.deadline if executor is not None else None
        if deadline is None:
            return max(self._end, self._quiet_since + GRACE)
        self._quiet_since = self._now
        if math.isinf(deadline):
            deadline = self._began + self._instance.plan.limits.patience
        return max(self._end, deadline + GRACE)

    async def run(self, building: asyncio.Task[None] | None) -> None:
        """Wait for the set-up, then drain."""
        if building is not None:
            await asyncio.wait([building])
        if self._instance.executor is not None:
            self._instance.executor.announce_stop()
        self._await("the broker", CLOSE_TIMEOUT)
        try:
            await from_twisted(self._instance.session.cancel())
        finally:
            # Running deliveries finish, and the teardown runs, whatever the broker says.
            await self._finish()

    async def _finish(self) -> None:
        dispatcher = self._instance.dispatcher
        given_back = dispatcher.give_back_waiting() + dispatcher.give_back_held()
        running = len(self._instance.running)
        _log.info("stopping: %d given back to the broker, %d running", given_back, running)
        self._await("what is being written", LAST_WRITES)
        await dispatcher.finish()
        await dispatcher.give_back_rest()
        await self._teardown()
        # After the last settle, and the last message that the teardown may publish.
        self._await("the outbox", LAST_SENDS + LAST_BATCH)
        await self._instance.publications.stop()
        self._await("the broker", CLOSE_TIMEOUT)
        await from_twisted(self._instance.session.close())
        self._instance.files.close()

    async def _teardown(self) -> None:
        executor = self._instance.executor
        if executor is None:
            return
        self._await("the handler's teardown", self._instance.plan.limits.patience)
        try:
            await executor.teardown()
        except BaseException as error:  # noqa: BLE001 -- the author's code
            reraise_own_cancellation(error)
            _log.error("the handler's teardown failed", exc_info=error)
            self._teardown_failed(error)
        executor.close()

    def _await(self, what: str, seconds: float = 0) -> None:
        self._awaited = what
        self._end = self._now + seconds + GRACE

    @property
    def _now(self) -> float:
        return self._instance.clock.monotonic()


def cut_short(instance: Instance) -> None:
    """Drop the connection at once, cancel the handlers that can be cancelled, and log the rest.

    The end of the process counts as a crash only for deliveries that were beyond their deadline.
    """
    executor = instance.executor
    if executor is not None:
        guilty = [delivery for run in executor.overruns() for delivery in run.deliveries]
        instance.files.flight.charge_only(guilty)
        cancelled = executor.cancel()
        for delivery in instance.running:
            what = "is cancelled in" if delivery in cancelled else "is left in"
            count = _counted(delivery, instance) if delivery in guilty else _NOT_COUNTED
            _log.warning(
                "%s %s its handler; %s",
                describe(delivery),
                what,
                _then(delivery, count),
                extra=fields_of(delivery),
            )
    instance.session.abort()


def _counted(delivery: Delivery, instance: Instance) -> str:
    crashes, attempts = delivery.history.crashes + 1, instance.plan.policy.crash_attempts
    count = f"counts as crash {crashes} of {attempts}"
    return f"{count}: it will be quarantined" if crashes >= attempts else count


def _then(delivery: Delivery, count: str) -> str:
    again = "it stays in the store" if delivery.row else "the broker will deliver it again"
    return f"{again}, and this {count}"
