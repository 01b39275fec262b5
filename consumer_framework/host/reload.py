# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the configuration again while the instance runs, and tells what came of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet import task

from consumer_framework.adapters import certificates
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.lifecycle import State
from consumer_framework.core.settings import Takes, changes, in_force, is_authors

from .countdown import LEASE, RENEWAL
from .loader import is_plain_class
from .rereading import HandedOver
from .tasks import from_twisted, reraise_own_cancellation
from .transition import Candidate, Transition, stopping

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator

    from consumer_framework.adapters.config import Loaded
    from consumer_framework.core.settings import Change, Settings

    from .instance import Instance
    from .plan import Plan

    Say = Callable[[str], None]

_log = logging.getLogger(__name__)

# What takes more than the flight recorder has room for waits for a restart.
_TAKES_ROOM = {f"consumer_config.framework.{key}" for key in ("slots", "batch", "batch.size")}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an instance's configuration comes from.

    Attributes:
        source: The file, for people.
        read: Reads and checks it, with what an order to reload brought along instead where this
            user may not read it; raises :class:`.ConfigurationError`.
        plan: Plans what its settings say, likewise; finds the author's object, or takes the one
            that it is given as ``target``.
        set_up_logging: Logs as settings say, likewise.
        names_callback: Whether the file says which one that is, and not the command line.
        handed_over: Looks at what the service manager has handed over.
        given: Finds in an order to reload what it brought along; None for nothing.
    """

    source: str
    read: Callable[[bytes | None], Loaded]
    plan: Callable[..., Plan]
    set_up_logging: Callable[[Settings], None]
    names_callback: bool = True
    handed_over: Callable[[], HandedOver] = HandedOver
    given: Callable[[dict[str, Any]], bytes | None] = lambda _request: None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a reload.

    Attributes:
        changes: How the file differs from what was in force before.
        problems: Why it was refused; nothing where it was not.
        notes: What could not be read again.
    """

    changes: tuple[Change, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """``refused``, ``unchanged`` or ``reloaded``."""
        return "refused" if self.problems else "reloaded" if self.changes else "unchanged"

    @property
    def waiting(self) -> tuple[Change, ...]:
        """What waits for a restart."""
        return tuple(change for change in self.changes if change.takes is Takes.RESTART)

    def as_json(self) -> dict[str, Any]:
        """The answer on the control socket."""
        found = [{**asdict(change), "takes": change.takes.value} for change in self.changes]
        problems = [asdict(problem) for problem in self.problems]
        told = {"changes": found, "problems": problems, "notes": list(self.notes)}
        return {"result": self.result, **told}


class Reloader:
    """Carries out the orders to reload, one after the other.

    Args:
        instance: What runs.
        origin: Where its configuration comes from.
        spawn: Starts a task that is looked after.
    """

    def __init__(
        self,
        instance: Instance,
        origin: Origin,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._instance = instance
        self._origin = origin
        self._spawn = spawn
        self._lock = asyncio.Lock()
        self._files = certificates.digests(instance.settings.tls)
        self._handed_over = origin.handed_over()
        self._reconnecting: asyncio.Task[None] | None = None
        self._is_resting = False
        self._extension = task.LoopingCall(instance.notifier.extend, LEASE)
        self._extension.clock = instance.reactor

    def begin(self) -> None:
        """Reload, as a signal says."""
        self._spawn(self._serve(lambda _answer: None))

    async def order(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Reload, as an operator says: ``step`` tells what is waited for, ``result`` ends it.

        Goes on where nobody listens any more.
        """
        answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._spawn(self._serve(answers.put_nowait, self._origin.given(request)))
        while (answer := await answers.get()) is not None:
            yield answer

    async def _serve(
        self, answer: Callable[[dict[str, Any] | None], None], given: bytes | None = None
    ) -> None:
        def say(step: str) -> None:
            answer({"step": step})

        try:
            if self._lock.locked():
                say("waiting for the reload that is under way")
            async with self._lock:
                report = await self._reload(say, given)
            if not report.problems:
                await self._reconnected(say)
            answer(report.as_json())
        finally:
            answer(None)

    async def _reconnected(self, say: Say) -> None:
        """Wait for another connection, if one is to be made."""
        if self._reconnecting is not None and not self._reconnecting.done():
            running = len(self._instance.running)
            say(f"connecting again, as soon as what runs has ended ({running} running)")
            await asyncio.wait([self._reconnecting])

    async def _reload(self, say: Say, given: bytes | None) -> Report:
        await self._instance.is_built.wait()
        if self._is_stopping:
            return Report(problems=stopping().problems)
        source = self._origin.source
        _log.info("reloading %s", source)
        with self._announced(f"Reloading {source}"):
            report = await self._try(say, given)
            _log_report(report, source)
            self._instance.remarks.update(_remarks(report))
        return report

    @contextmanager
    def _announced(self, status: str) -> Iterator[None]:
        """Tell the service manager, if it knows the instance as ready."""
        if not self._instance.was_ready:
            yield
            return
        self._instance.is_reloading = True
        self._instance.notifier.reloading(status)
        self._extension.start(RENEWAL)
        try:
            yield
        finally:
            self._extension.stop()
            self._instance.is_reloading = False
            if not self._is_stopping:
                # Also where the old settings stay.
                self._instance.announce_ready()

    async def _try(self, say: Say, given: bytes | None) -> Report:
        try:
            candidate, files = self._candidate(given)
            if candidate.makes_handler:
                say("setting up a new handler")
            transition = Transition(self._instance, candidate, self._origin.set_up_logging)
            if candidate.changes and await transition.run():
                self._reconnect()
        except ConfigurationError as error:
            located = ConfigurationError(*error.located, source=self._origin.source)
            return Report(problems=located.located)
        except BaseException as error:  # noqa: BLE001 -- the author's code may be part of it
            reraise_own_cancellation(error)
            _log.critical("please report this defect of consumer_framework", exc_info=error)
            return Report(problems=(Problem("", f"internal error: {error!r}", "see the log"),))
        self._files = files
        return Report(candidate.changes, notes=self._not_reread())

    def _not_reread(self) -> tuple[str, ...]:
        before, self._handed_over = self._handed_over, self._origin.handed_over()
        return before.not_reread(self._handed_over)

    # What is to come into force.

    def _candidate(self, given: bytes | None) -> tuple[Candidate, dict[str, str]]:
        """Read the file, check it whole, and put together what of it can be in force now.

        Returns:
            That, and the digests of its TLS files.
        """
        if given is None:
            self._origin.handed_over().refuse_stale()
        loaded = self._origin.read(given)
        old, new = self._instance.settings, loaded.settings
        if not self._origin.names_callback:
            new = new.model_copy(update={"callback": old.callback})
        # Looked at before they are read: one that changes meanwhile counts the next time.
        files = certificates.digests(new.tls)
        others = {key for key, digest in files.items() if digest != self._files[key]}
        waiting = self._made_before_the_loop(changes(old, new, others))
        found = changes(old, new, others, waiting)
        is_other = any(change.path == "callback" for change in found)
        target = self._instance.plan.target
        # Checked whole: with the callback that it names. Python does not import a module twice.
        self._origin.plan(settings=new, target=None if is_other else target)
        settings, plan = self._in_force(new, found)
        if plan.framework.at_once > self._instance.stores.places:
            found = changes(old, new, others, {*waiting, *_TAKES_ROOM})
            settings, plan = self._in_force(new, found)
        return Candidate(settings, _document(loaded, settings, found), plan, found), files

    def _made_before_the_loop(self, found: tuple[Change, ...]) -> set[str]:
        """The author's settings that a plain class has read: it is made before the loop runs."""
        target = self._instance.plan.target
        if target is None or not is_plain_class(target):
            return set()
        return {change.path for change in found if is_authors(change.path)}

    def _in_force(self, new: Settings, found: tuple[Change, ...]) -> tuple[Settings, Plan]:
        settings = in_force(self._instance.settings, new, found)
        target = self._instance.plan.target
        try:
            return settings, self._origin.plan(settings=settings, target=target)
        except ConfigurationError as error:
            # It is right as a whole, and was found so before.
            what = "does not go together with what takes a restart"
            problem = Problem("", what, "restart the instance")
            raise ConfigurationError(problem, *error.located) from error

    # Another connection.

    def _reconnect(self) -> None:
        # One that waits for what runs will find what is in force then.
        if not self._is_resting:
            self._is_resting = True
            self._reconnecting = self._spawn(self._connect_again(self._reconnecting))

    async def _connect_again(self, former: asyncio.Task[None] | None) -> None:
        """Connect again with nothing in the handler, so that nothing is run twice anywhere."""
        slots, session = self._instance.slots, self._instance.session
        if former is not None:
            await asyncio.wait([former])
        try:
            await slots.rest()
            self._is_resting = False
            if not self._is_stopping:
                await from_twisted(session.reconnect("connecting again with other settings"))
        finally:
            slots.go_on()

    @property
    def _is_stopping(self) -> bool:
        return self._instance.state in {State.FAILING, State.DRAINING, State.STOPPED}


def _document(loaded: Loaded, settings: Settings, found: tuple[Change, ...]) -> dict[str, Any]:
    """What fedora-messaging gets: not what waits for a restart."""
    tops = {change.path.partition(".")[0] for change in found if change.takes is Takes.RESTART}
    kept = tops - {"consumer_config", "qos"}
    document = {key: value for key, value in loaded.document.items() if key not in kept}
    return {**document, "consumer_config": settings.consumer_config}


def _log_report(report: Report, source: str) -> None:
    if report.problems:
        _log.error("the reload of %s is refused; the settings stay as they are:", source)
        for line in str(ConfigurationError(*report.problems)).splitlines():
            _log.error("%s", line)
        return
    for change in report.changes:
        if change.takes is Takes.RESTART:
            _log.warning("%s: takes a restart of the instance", change)
        else:
            _log.info("%s", change)
    for note in report.notes:
        _log.warning("%s", note)
    _log.info("reloaded %s" if report.changes else "nothing has changed in %s", source)


def _remarks(report: Report) -> dict[str, str]:
    """What `systemctl status` says of it from now on."""
    if report.problems:
        first, *others = report.problems
        more = f" and {len(others)} more" if others else ""
        return {"reload": f"reload refused: {first}{more}"}
    paths = dict.fromkeys(change.path for change in report.waiting)
    return {"reload": "", "restart": f"restart it for {', '.join(paths)}" if paths else ""}
