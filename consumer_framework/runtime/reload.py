# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the configuration again while the instance runs.

A reload brings the whole of a new configuration into force, or nothing of it, while messages are
handled. It goes through these steps::

    read the file ─▶ check it whole ─▶ leave out changes that wait for a restart ─▶ activate

:class:`Reloader` goes through them for SIGHUP and for ``fm-consumer reload``, one reload after the
other, and reports the result. :class:`Activation` is the last step: the parts that may fail come
first, and are undone if one of them fails. Messages in the handler end as they began.

systemd hands over credentials once, when the service starts, and the configuration file as one of
them if only root may read it. A reload by root's ``fm-consumer reload`` brings the file along, but
no credentials. systemd 260 or newer hands them over again for ``systemctl reload``, with
``RefreshOnReload=credentials`` (systemd.service(5)). :class:`CredentialSnapshot` tells which ones
are still the old ones.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet import task

from consumer_framework.adapters import certificates, config, log
from consumer_framework.adapters.systemd.credentials import ServiceCredentials
from consumer_framework.core.errors import ConfigurationError, Fault, Problem
from consumer_framework.core.gate import Reason
from consumer_framework.settings import Takes, changes, in_force, is_authors
from consumer_framework.settings.changes import bound_keys, difference
from consumer_framework.settings.credentials import UnavailableError

from .assembly.access import from_inside
from .assembly.configuration import configure_logging, read_again
from .assembly.loader import is_plain_class
from .assembly.plan import plan_of_this_process
from .control.schema import ReloadReport, Step
from .deadline import LEASE, RENEWAL
from .lanes import lane_finder
from .state_files import store_limits
from .tasks import from_twisted, reraise_own_cancellation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
    from pathlib import Path

    from consumer_framework.adapters.config import Loaded
    from consumer_framework.author.handler import Handler
    from consumer_framework.settings import Change, Settings

    from .assembly.configuration import RunOptions
    from .assembly.plan import Plan
    from .control.schema import Reload
    from .instance import Instance

    Say: TypeAlias = Callable[[str], None]
    Answer: TypeAlias = Step | ReloadReport

_log = logging.getLogger(__name__)

# Changes that wait for a restart if the flight recorder has not enough room for them.
_TAKES_ROOM = {f"consumer_config.framework.{key}" for key in ("slots", "batch", "batch.size")}

_CURE_OF_FILE = (
    "run 'fm-consumer reload' as root, which hands the file over, or restart the instance"
)
_CURE_OF_CREDENTIALS = (
    "restart the instance (systemd 260 or newer hands them over again for systemctl reload)"
)


class Reloader:
    """Reloads the configuration, one request after the other.

    Args:
        instance: The instance that runs.
        options: The options of its start, which name its configuration.
        spawn: Starts a supervised task.
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
        self._tls_digests = certificates.digests(instance.settings.tls)
        self._credentials = CredentialSnapshot.take(options.path, options.instance)
        self._reconnecting: asyncio.Task[None] | None = None
        self._waits_for_idle = False
        self._extension = task.LoopingCall(instance.notifier.extend, LEASE)
        self._extension.clock = instance.reactor

    def begin(self) -> None:
        """Reload for a signal."""
        self._spawn(self._serve(lambda _answer: None))

    async def respond(self, request: Reload) -> AsyncGenerator[Answer, None]:
        """Reload for an operator's request: steps while it takes time, then the report.

        The reload goes on if the operator's command is gone.
        """
        answers: asyncio.Queue[Answer | None] = asyncio.Queue()
        given = file_given(request, self._options.path)
        self._spawn(self._serve(answers.put_nowait, given))
        while (answer := await answers.get()) is not None:
            yield answer

    async def _serve(
        self, answer: Callable[[Answer | None], None], given: bytes | None = None
    ) -> None:
        def say(step: str) -> None:
            answer(Step(step))

        try:
            if self._lock.locked():
                say("waiting for the reload that is under way")
            async with self._lock:
                report = await self._reload(say, given)
            if not report.problems:
                await self._wait_for_reconnection(say)
            answer(report)
        finally:
            answer(None)

    async def _reload(self, say: Say, given: bytes | None) -> ReloadReport:
        await self._instance.is_built.wait()
        if self._instance.gate.is_closed:
            return refused(_too_late())
        source = self._options.source
        _log.info("reloading %s", source)
        with self._announced(f"Reloading {source}"):
            report = await self._try(say, given)
            log_report(report, source)
            self._instance.remarks.update(remarks_of(report))
        return report

    @contextmanager
    def _announced(self, status: str) -> Iterator[None]:
        """Tell the service manager about the reload, once it knows the instance as ready."""
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
                # Also after a refusal.
                self._instance.status.announce_ready()

    async def _try(self, say: Say, given: bytes | None) -> ReloadReport:
        try:
            new = self._read(given)
            if new.makes_handler:
                say("setting up a new handler")
            if new.changes and await Activation(self._instance, new, self._options).run():
                self._reconnect()
        except ConfigurationError as error:
            return refused(ConfigurationError(*error.located, source=self._options.source))
        except BaseException as error:  # noqa: BLE001 -- the author's code may be part of it
            reraise_own_cancellation(error)
            _log.critical("please report this defect of consumer_framework", exc_info=error)
            problem = Problem("", f"internal error: {error!r}", "see the log")
            return refused(ConfigurationError(problem))
        self._tls_digests = new.tls_digests
        before = self._credentials
        self._credentials = CredentialSnapshot.take(self._options.path, self._options.instance)
        result = "reloaded" if new.changes else "unchanged"
        return ReloadReport(result, new.changes, notes=before.notes_of_unchanged(self._credentials))

    def _read(self, given: bytes | None) -> NewConfiguration:
        """Read the file, check it whole, and keep the parts that can come into force now."""
        options = self._options
        if given is None:
            CredentialSnapshot.take(options.path, options.instance).refuse_stale_copy()
        loaded = read_again(options, given)
        old, new = self._instance.settings, loaded.settings
        if options.names_callback:
            new = new.model_copy(update={"callback": old.callback})
        # Computed before the files are read: one that changes meanwhile counts the next time.
        digests = certificates.digests(new.tls)
        files = {key for key, digest in digests.items() if digest != self._tls_digests[key]}
        waiting = self._read_by_plain_class(changes(old, new, files))
        found = changes(old, new, files, waiting)
        # The whole is checked with the callback that it names. Python imports a module only once.
        is_other = any(change.path == "callback" for change in found)
        plan_of_this_process(options, new, None if is_other else self._instance.plan.target)
        settings, plan = self._without_waiting(new, found)
        if plan.framework.at_once > self._instance.files.places:
            found = changes(old, new, files, {*waiting, *_TAKES_ROOM})
            settings, plan = self._without_waiting(new, found)
        return NewConfiguration(settings, _document(loaded, settings, found), plan, found, digests)

    def _read_by_plain_class(self, found: tuple[Change, ...]) -> set[str]:
        # A plain class is made before the loop runs, and has read the author's settings then.
        target = self._instance.plan.target
        if target is None or not is_plain_class(target):
            return set()
        return {change.path for change in found if is_authors(change.path)}

    def _without_waiting(self, new: Settings, found: tuple[Change, ...]) -> tuple[Settings, Plan]:
        settings = in_force(self._instance.settings, new, found)
        target = self._instance.plan.target
        try:
            return settings, plan_of_this_process(self._options, settings, target)
        except ConfigurationError as error:
            # The file as a whole is right, and was checked before.
            what = "does not go together with what takes a restart"
            problem = Problem("", what, "restart the instance")
            raise ConfigurationError(problem, *error.located) from error

    # Another connection.

    def _reconnect(self) -> None:
        # A reconnection that still waits will find the new settings.
        if not self._waits_for_idle:
            self._waits_for_idle = True
            self._reconnecting = self._spawn(self._connect_again(self._reconnecting))

    async def _connect_again(self, former: asyncio.Task[None] | None) -> None:
        """Connect again while no handler runs, so that no message runs twice anywhere."""
        gate, session = self._instance.gate, self._instance.session
        if former is not None:
            await asyncio.wait([former])
        try:
            gate.suspend(Reason.RECONNECTION)
            await self._instance.dispatcher.idle()
            self._waits_for_idle = False
            if not gate.is_closed:
                await from_twisted(session.reconnect("connecting again with other settings"))
        finally:
            gate.resume(Reason.RECONNECTION)

    async def _wait_for_reconnection(self, say: Say) -> None:
        if self._reconnecting is not None and not self._reconnecting.done():
            running = len(self._instance.running)
            say(f"connecting again, as soon as what runs has ended ({running} running)")
            await asyncio.wait([self._reconnecting])


def refused(error: ConfigurationError) -> ReloadReport:
    """Return the report of a reload that changed nothing."""
    return ReloadReport("refused", problems=error.located)


def _too_late() -> ConfigurationError:
    what, cure = "the instance is stopping", "the file is read when it is started again"
    return ConfigurationError(Problem("", what, cure))


def _document(loaded: Loaded, settings: Settings, found: tuple[Change, ...]) -> dict[str, Any]:
    """Return the document for fedora-messaging, without the changes that wait for a restart."""
    tops = {change.path.partition(".")[0] for change in found if change.takes is Takes.RESTART}
    waiting = tops - {"consumer_config", "qos"}
    document = {key: value for key, value in loaded.document.items() if key not in waiting}
    return {**document, "consumer_config": settings.consumer_config}


def log_report(report: ReloadReport, source: str) -> None:
    """Write the lines about a reload of the file *source*."""
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


def remarks_of(report: ReloadReport) -> dict[str, str]:
    """Return the remarks that ``systemctl status`` shows from now on, by their kind."""
    if report.problems:
        first, *others = report.problems
        more = f" and {len(others)} more" if others else ""
        return {"reload": f"reload refused: {first}{more}"}
    paths = dict.fromkeys(change.path for change in report.waiting)
    return {"reload": "", "restart": f"restart it for {', '.join(paths)}" if paths else ""}


@dataclass(frozen=True, slots=True)
class NewConfiguration:
    """A configuration that was read and checked, and is to come into force.

    Attributes:
        settings: The new settings; those that wait for a restart are the old ones.
        document: The same for fedora-messaging.
        plan: The plan for them.
        changes: The differences from the settings in force, those that wait included.
        tls_digests: The digests of its TLS files.
    """

    settings: Settings
    document: dict[str, Any]
    plan: Plan
    changes: tuple[Change, ...]
    tls_digests: dict[str, str]

    @property
    def has_other_files(self) -> bool:
        """Tell whether the next connection takes other TLS files."""
        return any(change.takes is Takes.RECONNECT for change in self.changes)

    @property
    def makes_handler(self) -> bool:
        """Tell whether the handler was made with author's settings that are now others."""
        has_other_settings = any(
            change.takes is Takes.RELOAD and is_authors(change.path) for change in self.changes
        )
        target = self.plan.target
        return has_other_settings and target is not None and inspect.isclass(target.value)


class Activation:
    """Brings a new configuration into force: all of it, or nothing.

    Args:
        instance: The instance, which has a handler.
        new: The configuration.
        options: The options of the instance's start, for logging.
    """

    def __init__(self, instance: Instance, new: NewConfiguration, options: RunOptions) -> None:
        self._instance = instance
        self._new = new
        self._options = options
        self._undo: list[Callable[[], object]] = []
        self._handler: Handler | None = None
        before, after = bound_keys(instance.settings), bound_keys(new.settings)
        self._bound, self._unbound = difference(after, before), difference(before, after)

    async def run(self) -> bool:
        """Bring it into force.

        Returns:
            True if another connection is needed for some of it.

        Raises:
            ConfigurationError: It cannot come into force; the old one still is.
        """
        try:
            self._set_up_logging()
            self._give_to_upstream()
            use_files = self._prepare_tls()
            await self._bind()
            if self._new.makes_handler:
                await self._make_handler()
        except BaseException:
            self._undo_all()
            raise
        # From here on nothing waits, and nothing fails.
        use_files()
        return self._commit() or self._new.has_other_files

    def _set_up_logging(self) -> None:
        former, new = self._instance.settings, self._new.settings
        if former.log_config != new.log_config:
            self._undo.append(lambda: self._replace_logging(new, former))
            self._replace_logging(former, new)

    def _replace_logging(self, former: Settings, new: Settings) -> None:
        log.forget(former.log_config)
        configure_logging(new, self._options)

    def _give_to_upstream(self) -> None:
        before = config.give_to_upstream(self._new.document)
        self._undo.append(lambda: config.give_to_upstream(before))

    def _prepare_tls(self) -> Callable[[], None]:
        if self._new.has_other_files:
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
        plan = self._new.plan
        try:
            handler = plan.factory()
            teardown = await executor.replace(handler, plan.framework.start_timeout)
        except BaseException as error:
            reraise_own_cancellation(error)
            _log.error("the new handler cannot be set up", exc_info=error)
            what = f"the handler cannot be set up with it: {type(error).__name__}: {error}"
            problem = Problem("consumer_config", what, "the log has more")
            raise ConfigurationError(problem) from error
        if teardown is None:
            raise _too_late()
        teardown.add_done_callback(_log_teardown)
        self._handler = handler

    def _commit(self) -> bool:
        instance, settings, plan = self._instance, self._new.settings, self._new.plan
        instance.settings, instance.plan = settings, plan
        # Bound again: there may be another connection by now, with queues bound as before.
        instance.session.apply(settings, self._bound, self._unbound)
        instance.dispatcher.apply(plan)
        if self._handler is not None:
            instance.dispatcher.lane_of = lane_finder(plan, self._handler)
        instance.files.store.limit(store_limits(plan.framework))
        instance.publications.apply(settings)
        instance.read_ahead.reload()
        # Slots and prefetch, or less of them while memory is short.
        return bool(instance.memory_relief.apply())

    def _undo_all(self) -> None:
        while self._undo:
            try:
                self._undo.pop()()
            except Exception:  # noqa: BLE001 -- the others are to be undone all the same
                _log.exception("part of a reload could not be taken back")


def _log_teardown(teardown: asyncio.Task[BaseException | None]) -> None:
    error = None if teardown.cancelled() else teardown.result()
    if error is not None:
        _log.error("the teardown of the former handler failed", exc_info=error)
    else:
        _log.info("the former handler has ended")


def file_given(request: Reload, path: Path | None) -> bytes | None:
    """Return the bytes of the configuration file that root sent with a request.

    Args:
        request: The request.
        path: The instance's own configuration; None for none.

    Returns:
        None without them, if they are of another file, or if this user may read the file.
    """
    file = request.file
    if file is None or path is None or os.access(path, os.R_OK):
        return None
    if file.path != str(path.absolute()):
        return None
    # Bytes that are no UTF-8 came as surrogates, for the error to name them.
    return file.text.encode(errors="surrogateescape")


@dataclass(frozen=True, slots=True)
class CredentialSnapshot:
    """The state of the credentials that systemd has handed over, at one moment.

    Attributes:
        file: The configuration file, if systemd's copy of it is read in its place; None otherwise.
        copied: When the copy was made, in nanoseconds since the epoch.
        credentials: The time and the inode of each credential that the configuration names.
    """

    file: Path | None = None
    copied: int = 0
    credentials: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def take(cls, path: Path | None, instance: str) -> CredentialSnapshot:
        """Look at the credentials of this process, whose configuration is *path*."""
        if path is None:
            return cls()
        access = from_inside(path, instance)
        copy = access.handed_over if not os.access(path, os.R_OK) else None
        try:
            names = {reference.name for reference in config.references(path, access)}
        except ConfigurationError:
            names = set()
        credentials = {}
        for name in names:
            try:
                status = ServiceCredentials.of_process(instance).find(name).stat()
            except (UnavailableError, OSError):
                continue
            credentials[name] = (status.st_mtime_ns, status.st_ino)
        if copy is None:
            return cls(credentials=credentials)
        return cls(path, copy.stat().st_mtime_ns, credentials)

    def refuse_stale_copy(self) -> None:
        """Refuse a copy of the configuration file that is older than the file.

        Raises:
            ConfigurationError: The file was changed since the copy was made.
        """
        if self.file is not None and _changed_at(self.file) > self.copied:
            what = "was changed, and cannot be read again: only root may read it"
            problem = f"{what}, and the instance has the copy of its start"
            raise ConfigurationError(Problem("", problem, _CURE_OF_FILE))

    def notes_of_unchanged(self, now: CredentialSnapshot) -> tuple[str, ...]:
        """Return a line for operators about the credentials that are still the same, if any.

        Args:
            now: A snapshot taken later.
        """
        same = sorted(n for n, state in now.credentials.items() if self.credentials.get(n) == state)
        if not same:
            return ()
        names = ", ".join(same)
        return (f"these credentials are as they were: {names}; if not, {_CURE_OF_CREDENTIALS}",)


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        # A change that cannot be seen counts as one.
        return 1 << 63
