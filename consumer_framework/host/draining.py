# SPDX-License-Identifier: GPL-2.0-or-later
"""Drains an instance: nothing more is taken, what runs finishes, the rest goes back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from twisted.internet import defer

from consumer_framework.core.fields import fields_of

from .tasks import reraise_own_cancellation
from .wording import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .instance import Instance

_log = logging.getLogger(__name__)


async def drain(instance: Instance, teardown_failed: Callable[[BaseException], None]) -> None:
    """Drain *instance*, whose slots are closed, and close what it has open.

    Args:
        instance: What to drain.
        teardown_failed: Called with what the author's teardown raised.
    """
    try:
        await _until(instance.session.cancel())
    finally:
        # Whatever the broker says: what runs finishes, and the author's code is told.
        await _finish(instance, teardown_failed)


async def _finish(instance: Instance, teardown_failed: Callable[[BaseException], None]) -> None:
    slots = instance.slots
    given_back = slots.give_back_waiting() + slots.give_back_held()
    running = len(instance.running)
    _log.info("stopping: %d given back to the broker, %d running", given_back, running)
    await slots.finish()
    # What was running may have been held meanwhile.
    slots.give_back_held()
    await _teardown(instance, teardown_failed)
    await _until(instance.session.close())
    instance.stores.close()


async def _teardown(instance: Instance, failed: Callable[[BaseException], None]) -> None:
    if instance.executor is None:
        return
    try:
        await instance.executor.teardown()
    except BaseException as error:  # noqa: BLE001 -- the author's code
        reraise_own_cancellation(error)
        _log.error("the handler's teardown failed", exc_info=error)
        failed(error)
    instance.executor.close()


def cut_short(instance: Instance) -> None:
    """Drop the connection at once, and say what that leaves."""
    for delivery in instance.running:
        _log.warning(
            "%s is left in its handler; the broker will deliver it again",
            describe(delivery),
            extra=fields_of(delivery),
        )
    instance.session.abort()


async def _until(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await a coroutine of the session's, which awaits Deferreds, in an asyncio task."""
    loop = asyncio.get_running_loop()
    await defer.Deferred.fromCoroutine(coroutine).asFuture(loop)
