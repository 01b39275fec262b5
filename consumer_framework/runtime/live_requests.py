# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers the requests about a running instance, and the orders to pause it or to log more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from consumer_framework.core.gate import SHUTS, GateEntry, Reason
from consumer_framework.core.text import printable
from consumer_framework.runtime.observe.events import EventFeed
from consumer_framework.settings import settings_of

from .control import schema
from .control.operators import short_name
from .control.routes import Refusal, this_process
from .control.schema import GateReport, InFlightReport, Watching
from .log_levels import LogLevels
from .stacks import messages_in_flight, stacks_of_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from .control.schema import Request
    from .instance import Instance

_log = logging.getLogger(__name__)


class LiveRequests:
    """Answers requests about *instance*.

    Args:
        instance: The instance, which has a control socket now.
        name: Its name.

    Attributes:
        by_type: The method that answers each type of request.
    """

    def __init__(self, instance: Instance, name: str) -> None:
        self._instance = instance
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._log_levels = LogLevels(
            lambda seconds, function: self._loop.call_later(seconds, function).cancel,
            instance.clock.time,
        )
        self.by_type: dict[type[Request[Any]], Callable[[Any], AsyncIterator[object]]] = {
            schema.Ping: self.ping,
            schema.InFlight: self.in_flight,
            schema.Stacks: self.stacks,
            schema.Events: self.events,
            schema.ListSettings: self.list_settings,
            schema.Pause: self.pause,
            schema.Resume: self.resume,
            schema.LogLevel: self.log_level,
        }

    async def ping(self, _request: schema.Ping) -> AsyncGenerator[schema.Pong, None]:
        """Name this process."""
        yield this_process(self._name)

    async def in_flight(self, _request: schema.InFlight) -> AsyncGenerator[InFlightReport, None]:
        """List the messages that the handler has."""
        executor = self._instance.executor
        now = self._loop.time()
        yield InFlightReport(messages_in_flight(executor, now) if executor is not None else ())

    async def stacks(self, _request: schema.Stacks) -> AsyncGenerator[schema.StacksReport, None]:
        """Show the functions that threads and tasks are in."""
        yield stacks_of_process(self._loop)

    async def events(
        self, request: schema.Events
    ) -> AsyncGenerator[Watching | schema.Happened | schema.Missed, None]:
        """Tell of each event until the client goes away."""
        feed = EventFeed(self._instance.clock, frozenset(request.kinds))
        async with aclosing(feed.follow(self._instance.observer)) as events:
            yield Watching(self._name)
            async for event in events:
                yield event

    async def list_settings(
        self, _request: schema.ListSettings
    ) -> AsyncGenerator[schema.SettingsReport, None]:
        """List the settings in force."""
        yield schema.SettingsReport(settings_of(self._instance.settings))

    async def pause(self, request: schema.Pause) -> AsyncGenerator[GateReport, None]:
        """Take no more messages.

        Raises:
            Refusal: The instance is starting or stopping.
        """
        self._require_work("paused")
        why = printable(request.reason)
        text = f"ordered by {short_name()}{f' ({why})' if why else ''}"
        self._instance.dispatcher.pause(text)
        yield self._report()

    async def resume(self, _request: schema.Resume) -> AsyncGenerator[GateReport, None]:
        """End the pause that an operator ordered."""
        self._require_work("resumed")
        self._instance.dispatcher.resume()
        yield self._report()

    async def log_level(
        self, request: schema.LogLevel
    ) -> AsyncGenerator[schema.LogLevelReport, None]:
        """Log with another level for a while."""
        yield self._log_levels.change(request)

    def _require_work(self, what: str) -> None:
        instance = self._instance
        if instance.gate.is_closed:
            raise Refusal(HTTPStatus.CONFLICT, f"it is stopping, and cannot be {what}")
        if not instance.was_ready:
            why = f"it is starting, and cannot be {what}; try again once it consumes"
            raise Refusal(HTTPStatus.CONFLICT, why)

    def _report(self) -> GateReport:
        instance = self._instance
        reasons = instance.gate.reasons
        return GateReport(
            instance.state.name.lower(),
            Reason.OPERATOR in reasons,
            tuple(t for r, t in reasons.items() if GateEntry.CONSUME in SHUTS[r]),
            len(instance.running),
        )
