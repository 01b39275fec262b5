# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the configuration again while the instance runs, and tells what came of it.

Brings other settings into force while messages are handled: all of them, or none.

What a reload cannot read again: what systemd handed over when the service started.

root's ``fm-consumer reload`` brings the file itself along. Credentials it does not:
systemd makes credentials once, at the start. One of version 260 or newer makes them anew for
``systemctl reload``, with ``RefreshOnReload=credentials`` (systemd.service(5)).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet import task

from consumer_framework.adapters import certificates, config, log
from consumer_framework.adapters.systemd.credentials import ServiceCredentials
from consumer_framework.core.errors import ConfigurationError, Fault, Problem
from consumer_framework.core.gate import Reason
from consumer_framework.runtime.assembly.loader import is_plain_class
from consumer_framework.settings import Takes, changes, in_force, is_authors
from consumer_framework.settings.changes import bound, without
from consumer_framework.settings.credentials import UnavailableError

from .assembly.access import from_inside
from .assembly.configuration import configure_logging, read_again
from .assembly.plan import plan_of_this_process
from .deadline import LEASE, RENEWAL
from .lanes import lane_finder
from .state_files import store_limits
from .tasks import from_twisted, reraise_own_cancellation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
    from pathlib import Path

    from consumer_framework.adapters.config import Loaded
    from consumer_framework.author.handler import Handler
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.settings import Change, Settings

    from .assembly.configuration import RunOptions
    from .instance import Instance

    Say = Callable[[str], None]

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
        options: The options of the start, for errors of logging.
    """

    def __init__(
        self,
        instance: Instance,
        candidate: Candidate,
        options: RunOptions,
    ) -> None:
        self._instance = instance
        self._to = candidate
        self._options = options
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
        configure_logging(settings, self._options)

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
        instance.dispatcher.apply(plan)
        if self._handler is not None:
            instance.dispatcher.lane_of = lane_finder(plan, self._handler)
        instance.files.store.limit(store_limits(plan.framework))
        instance.read_ahead.reload()
        # Slots and prefetch, or less of them while memory is short.
        return bool(instance.memory_relief.apply())

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


_CURE_OF_FILE = (
    "run 'fm-consumer reload' as root, which hands the file over, or restart the instance"
)
_CURE = "restart the instance (systemd 260 or newer hands them over again for systemctl reload)"


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What systemd had handed over when somebody looked.

    Attributes:
        file: The configuration file, where systemd's copy of it is read; None where the file
            itself is.
        copied: When the copy was made, in nanoseconds since the epoch.
        credentials: The state of each credential that the configuration names.
    """

    file: Path | None = None
    copied: int = 0
    credentials: Mapping[str, tuple[int, int]] | None = None

    def refuse_stale(self) -> None:
        """Refuse to read a copy that is older than what it is a copy of.

        Raises:
            ConfigurationError: The file was changed since.
        """
        if self.file is not None and _changed(self.file) > self.copied:
            what = "was changed, and cannot be read again: only root may read it"
            raise ConfigurationError(
                Problem("", f"{what}, and the instance has the copy of its start", _CURE_OF_FILE)
            )

    def not_reread(self, now: HandedOver) -> tuple[str, ...]:
        """Say in lines for an operator which credentials are still as they were, and what to do.

        Args:
            now: What systemd has handed over by now.
        """
        before, after = self.credentials or {}, now.credentials or {}
        same = sorted(name for name, state in after.items() if before.get(name) == state)
        if not same:
            return ()
        return (f"these credentials are as they were: {', '.join(same)}; if not, {_CURE}",)


def given(request: Mapping[str, Any], path: Path | None) -> bytes | None:
    """Return what the configuration *path* says, where the order to reload brought it along.

    Args:
        request: The order: ``file`` has the ``path`` and the ``text``, as root read it.
        path: The instance's own; None for none.

    Returns:
        None where the order has none, or has another one, or this user may read it.
    """
    file = request.get("file")
    if not isinstance(file, dict) or path is None or os.access(path, os.R_OK):
        return None
    text = file.get("text")
    if file.get("path") != str(path.absolute()) or not isinstance(text, str):
        return None
    # Bytes that are no UTF-8 came as such, for the error to say so.
    return text.encode(errors="surrogateescape")


def handed_over(path: Path | None, instance: str) -> HandedOver:
    """Look at what systemd has handed over to this instance, whose configuration is *path*."""
    access = from_inside(path, instance)
    if path is None:
        return HandedOver()
    copy = access.handed_over if not os.access(path, os.R_OK) else None
    states = {}
    try:
        names = {reference.name for reference in config.references(path, access)}
    except ConfigurationError:
        names = set()
    for name in names:
        try:
            status = ServiceCredentials.of_process(instance).find(name).stat()
        except (UnavailableError, OSError):
            continue
        states[name] = (status.st_mtime_ns, status.st_ino)
    if copy is None:
        return HandedOver(credentials=states)
    return HandedOver(path, copy.stat().st_mtime_ns, states)


def _changed(file: Path) -> int:
    """When *file* was changed; far in the future where that cannot be seen."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 1 << 63


# What takes more than the flight recorder has room for waits for a restart.
_TAKES_ROOM = {f"consumer_config.framework.{key}" for key in ("slots", "batch", "batch.size")}


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
        options: The options of its start, which name its configuration.
        spawn: Starts a task that is looked after.
    """

    def __init__(
        self,
        instance: Instance,
        options: RunOptions,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._instance = instance
        self._options = options
        self._spawn = spawn
        self._lock = asyncio.Lock()
        self._files = certificates.digests(instance.settings.tls)
        self._handed_over = handed_over(options.path, options.instance)
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
        self._spawn(self._serve(answers.put_nowait, given(request, self._options.path)))
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
        if self._instance.gate.is_closed:
            return Report(problems=stopping().problems)
        source = self._options.source
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
            if not self._instance.gate.is_closed:
                # Also where the old settings stay.
                self._instance.status.announce_ready()

    async def _try(self, say: Say, given: bytes | None) -> Report:
        try:
            candidate, files = self._candidate(given)
            if candidate.makes_handler:
                say("setting up a new handler")
            transition = Transition(self._instance, candidate, self._options)
            if candidate.changes and await transition.run():
                self._reconnect()
        except ConfigurationError as error:
            located = ConfigurationError(*error.located, source=self._options.source)
            return Report(problems=located.located)
        except BaseException as error:  # noqa: BLE001 -- the author's code may be part of it
            reraise_own_cancellation(error)
            _log.critical("please report this defect of consumer_framework", exc_info=error)
            return Report(problems=(Problem("", f"internal error: {error!r}", "see the log"),))
        self._files = files
        return Report(candidate.changes, notes=self._not_reread())

    def _not_reread(self) -> tuple[str, ...]:
        before = self._handed_over
        self._handed_over = handed_over(self._options.path, self._options.instance)
        return before.not_reread(self._handed_over)

    # What is to come into force.

    def _candidate(self, given: bytes | None) -> tuple[Candidate, dict[str, str]]:
        """Read the file, check it whole, and put together what of it can be in force now.

        Returns:
            That, and the digests of its TLS files.
        """
        if given is None:
            handed_over(self._options.path, self._options.instance).refuse_stale()
        loaded = read_again(self._options, given)
        old, new = self._instance.settings, loaded.settings
        if self._options.names_callback:
            new = new.model_copy(update={"callback": old.callback})
        # Looked at before they are read: one that changes meanwhile counts the next time.
        files = certificates.digests(new.tls)
        others = {key for key, digest in files.items() if digest != self._files[key]}
        waiting = self._made_before_the_loop(changes(old, new, others))
        found = changes(old, new, others, waiting)
        is_other = any(change.path == "callback" for change in found)
        target = self._instance.plan.target
        # Checked whole: with the callback that it names. Python does not import a module twice.
        plan_of_this_process(self._options, new, None if is_other else target)
        settings, plan = self._in_force(new, found)
        if plan.framework.at_once > self._instance.files.places:
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
            return settings, plan_of_this_process(self._options, settings, target)
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
        gate, dispatcher = self._instance.gate, self._instance.dispatcher
        if former is not None:
            await asyncio.wait([former])
        try:
            gate.suspend(Reason.RECONNECTION)
            await dispatcher.idle()
            self._is_resting = False
            if not gate.is_closed:
                await from_twisted(
                    self._instance.session.reconnect("connecting again with other settings")
                )
        finally:
            gate.resume(Reason.RECONNECTION)


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
