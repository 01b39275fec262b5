# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings other settings into force while messages are handled: all of them, or none."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import config, log
from consumer_framework.core.bindings import bound, without
from consumer_framework.core.errors import ConfigurationError, Fault, Problem
from consumer_framework.core.settings import Takes, is_authors

from .lane import lane_of
from .stores import journal_limits
from .tasks import from_twisted, reraise_own_cancellation

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from consumer_framework.core.handler import Handler
    from consumer_framework.core.settings import Change, Settings

    from .instance import Instance
    from .plan import Plan

_log = logging.getLogger(__name__)


def stopping() -> ConfigurationError:
    """Say that it is too late for other settings."""
    what, cure = "the instance is stopping", "the file is read when it is started again"
    return ConfigurationError(Problem("", what, cure))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to come into force.

    Attributes:
        settings: With what waits for a restart as it is now.
        document: The same for fedora-messaging.
        plan: How messages are handled then.
        changes: How all this differs from what is in force, and what waits for a restart.
    """

    settings: Settings
    document: dict[str, Any]
    plan: Plan
    changes: tuple[Change, ...]

    @property
    def has_other_files(self) -> bool:
        """Whether the next connection is to be made with other TLS files."""
        return any(change.takes is Takes.RECONNECT for change in self.changes)

    @property
    def makes_handler(self) -> bool:
        """Whether a handler that was made with the author's settings is to be made again."""
        has_other_settings = any(
            change.takes is Takes.RELOAD and is_authors(change.path) for change in self.changes
        )
        target = self.plan.target
        return has_other_settings and target is not None and inspect.isclass(target.value)


class Transition:
    """The way from the settings in force to a candidate.

    What may fail comes first, and is taken back where something fails. What is in the handler
    meanwhile ends as it began.

    Args:
        instance: Runs, and has a handler.
        candidate: What is to come into force.
        set_up_logging: Logs as settings say; raises :class:`.ConfigurationError`.
    """

    def __init__(
        self,
        instance: Instance,
        candidate: Candidate,
        set_up_logging: Callable[[Settings], None],
    ) -> None:
        self._instance = instance
        self._to = candidate
        self._set_up_logging = set_up_logging
        self._undo: list[Callable[[], object]] = []
        self._handler: Handler | None = None
        before, after = bound(instance.settings), bound(candidate.settings)
        self._bound, self._unbound = without(after, before), without(before, after)

    async def run(self) -> bool:
        """Bring the candidate into force.

        Returns:
            Whether some of it takes another connection.

        Raises:
            ConfigurationError: It cannot be, and what was in force still is.
        """
        try:
            self._log()
            self._give_to_upstream()
            use_files = self._prepare_tls()
            await self._bind()
            if self._to.makes_handler:
                await self._make_handler()
        except BaseException:
            self._take_back()
            raise
        # From here on nothing waits, and nothing fails.
        use_files()
        return self._commit() or self._to.has_other_files

    def _log(self) -> None:
        former = self._instance.settings
        if former.log_config == self._to.settings.log_config:
            return
        self._undo.append(lambda: self._log_as(self._to.settings, former))
        self._log_as(former, self._to.settings)

    def _log_as(self, former: Settings, settings: Settings) -> None:
        log.forget(former.log_config)
        self._set_up_logging(settings)

    def _give_to_upstream(self) -> None:
        before = config.give_to_upstream(self._to.document)
        self._undo.append(lambda: config.give_to_upstream(before))

    def _prepare_tls(self) -> Callable[[], None]:
        if self._to.has_other_files:
            return self._instance.session.service.prepare_tls()
        return lambda: None

    async def _bind(self) -> None:
        if not self._bound:
            return
        session, former = self._instance.session, self._instance.settings
        self._undo.append(lambda: session.apply(former, (), self._bound))
        try:
            await from_twisted(session.bind(self._bound))
        except Fault as error:
            raise ConfigurationError(Problem("bindings", str(error))) from error

    async def _make_handler(self) -> None:
        executor = self._instance.executor
        assert executor is not None  # noqa: S101 -- reloads wait for it
        try:
            handler = self._to.plan.factory()
            leaving = await executor.replace(handler, self._to.plan.framework.start_timeout)
        except BaseException as error:
            reraise_own_cancellation(error)
            _log.error("the new handler cannot be set up", exc_info=error)
            what = f"the handler cannot be set up with it: {type(error).__name__}: {error}"
            problem = Problem("consumer_config", what, "the log has more")
            raise ConfigurationError(problem) from error
        if leaving is None:
            raise stopping()
        leaving.add_done_callback(_say_how_it_left)
        self._handler = handler

    def _commit(self) -> bool:
        instance, settings, plan = self._instance, self._to.settings, self._to.plan
        instance.settings, instance.plan = settings, plan
        # Bound again: there may be another connection by now, with queues bound as before.
        instance.session.apply(settings, self._bound, self._unbound)
        instance.slots.apply(plan)
        if self._handler is not None:
            instance.slots.lane_of = lane_of(plan, self._handler)
        instance.stores.journal.limit(journal_limits(plan.framework))
        instance.read_ahead.reload()
        # Slots and prefetch, or less of them while memory is short.
        return bool(instance.relief.apply())

    def _take_back(self) -> None:
        while self._undo:
            try:
                self._undo.pop()()
            except Exception:  # noqa: BLE001 -- the others are to be taken back all the same
                _log.exception("part of a reload could not be taken back")


def _say_how_it_left(leaving: asyncio.Task[BaseException | None]) -> None:
    error = None if leaving.cancelled() else leaving.result()
    if error is not None:
        _log.error("the teardown of the former handler failed", exc_info=error)
    else:
        _log.info("the former handler has ended")
