# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a relay in a process of its own: ``fm-consumer outbox relay``, for the outbox of others.

There is no event loop. The relay has a thread; the main thread waits for orders (signals, the
control socket), tells the service manager, and looks after the relay.

========= ==================================================================================
start     wait for the database and its tables, then start the thread. READY once the relay
          can send, or stands by for another one. After ``start_timeout``: exit code 75
SIGHUP    read the file again and check it whole. Then the old relay finishes its batch, and
          the new one starts. With a file that is wrong the old one goes on
SIGTERM   finish the batch, give back lease and claims; exit code 0
defect    the relay's thread ended by itself: exit code 11. A thread that hangs feeds no
          watchdog, and the service manager restarts the process
========= ==================================================================================

If the process is killed, another relay sends the claimed rows again once the lease has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consumer_framework.adapters import certificates, config, log
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.adapters.systemd.notify import SystemdNotifier
from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault, Problem
from consumer_framework.core.text import about, duration_text
from consumer_framework.publishing.events import RelayLog, RelayObservers
from consumer_framework.publishing.outbox import database_of
from consumer_framework.publishing.relaying import RelayStatus, relay_of
from consumer_framework.publishing.store import OutboxError, OutboxStore
from consumer_framework.settings import Change, Takes

from .assembly.configuration import configure_logging, read_again
from .control import schema
from .control.routes import this_process
from .control.threaded import ControlThread
from .deadline import LEASE, RENEWAL
from .log_levels import LogLevels
from .observe.pages import RelayPages
from .process_exit import ProcessExit
from .reload import CredentialSnapshot, file_given, log_report, refused, remarks_of
from .signals import Signals
from .stacks import stacks_of_process
from .state_files import operators_socket, relay_socket, state_directory
from .watchdog import FEEDS

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator

    from consumer_framework.core.ports import Clock, Notifier
    from consumer_framework.publishing.relay import Relay
    from consumer_framework.settings import Settings

    from .assembly.configuration import RunOptions
    from .control.threaded import ByType

_log = logging.getLogger(__name__)

DATABASE = "consumer_config.framework.outbox.database"
# Seconds between two looks at the relay.
_TICK = 0.25
# Seconds between two updates of the line in `systemctl status`.
_STATUS_INTERVAL = 5.0
# Seconds between two attempts to use a database that is away.
_RETRY = 1.0
# The least number of seconds that a batch may take while the process stops.
_DRAIN = 60.0
# Seconds for threads of libraries, once the relay has ended.
_LAST_THREADS = 5.0


def run(options: RunOptions, notifier: Notifier | None = None) -> int:
    """Run a relay until it is told to stop, or cannot go on.

    Args:
        options: The configuration file and the name of the relay.
        notifier: Tells the service manager; None for systemd's.

    Returns:
        The exit code; see :class:`.ExitCode`.

    Raises:
        ConfigurationError: It can never start as it is configured.
        Fault: It cannot start now.
    """
    settings = config.load(options.path, access=options.effective_access)
    _require_database(settings, options.source)
    configure_logging(settings, options)
    notifier = notifier or SystemdNotifier()
    process = RelayProcess(options, settings, notifier, SystemClock())
    exit_code: int = ExitCode.UNEXPECTED
    try:
        exit_code = process.run()
    except Fault as error:
        exit_code = error.exit_code
        raise
    finally:
        ProcessExit(exit_code, _LAST_THREADS, notifier).begin()
    return exit_code


def _require_database(settings: Settings, source: str) -> None:
    if settings.framework.outbox.database is None:
        cure = (
            "set it to the database of the program that publishes, such as "
            '"postgresql:///NAME" or "sqlite:////PATH"; what an instance publishes, it sends itself'
        )
        raise ConfigurationError(Problem(DATABASE, "is not set", cure), source=source)


class _Orders:
    """Calls that other threads and signal handlers want made on the main thread, in order.

    It has the one method of a reactor that :class:`.Signals` needs.
    """

    def __init__(self) -> None:
        # Its put() may interrupt itself, as a signal handler does.
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:  # noqa: N802 -- Twisted's name
        """Have *function* called."""
        self._calls.put(lambda: function(*arguments))

    def wake(self) -> None:
        """End a wait."""
        self._calls.put(bool)

    def wait(self, seconds: float) -> None:
        """Make the next call, or return after so many seconds without one."""
        with contextlib.suppress(queue.Empty):
            self._calls.get(timeout=seconds)()


@dataclass
class _Sending:
    """A relay, its outbox, and its thread.

    Attributes:
        digests: Those of the TLS files when the relay was made.
        error: The exception that ended the thread; None for none.
    """

    settings: Settings
    store: OutboxStore
    relay: Relay
    digests: dict[str, str]
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    error: BaseException | None = None

    def start(self, ended: Callable[[], None]) -> None:
        """Start the thread; *ended* is called in it at its end."""

        def send() -> None:
            try:
                self.relay.run(self.stop)
            except BaseException as error:  # noqa: BLE001 -- the main thread reports it
                self.error = error
            finally:
                ended()

        self.thread = threading.Thread(target=send, name="outbox-relay", daemon=True)
        self.thread.start()

    @property
    def runs(self) -> bool:
        """True while the thread lives."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def drain_limit(self) -> float:
        """The seconds that the end of a batch may take."""
        return max(_DRAIN, 2 * self.settings.framework.outbox.lease)


class RelayProcess:
    """A relay in this process.

    Args:
        options: The configuration file and the name.
        settings: Its contents.
        notifier: Tells the service manager.
        clock: Measures time.
    """

    def __init__(
        self, options: RunOptions, settings: Settings, notifier: Notifier, clock: Clock
    ) -> None:
        self._options = options
        self._settings = settings
        self._notifier = notifier
        self._clock = clock
        self._orders = _Orders()
        self._signals = Signals(self._orders, self._on_stop, self._on_reload)
        self._status = RelayStatus(clock, settings.framework.outbox.messenger)
        self._observer = RelayObservers(self._status, RelayLog())
        self._remarks: dict[str, str] = {}
        self._log_levels = LogLevels(_call_later, clock.time)
        self._credentials = CredentialSnapshot.take(options.path, options.instance)
        self._sending: _Sending | None = None
        self._stop_signal: signal.Signals | None = None
        self._is_ready = self._is_proven = self._is_stuck = False
        self._trouble = ""
        self._status_at = self._watchdog_at = self._extended_at = float("-inf")

    def run(self) -> int:
        """Run the relay; see :func:`run`."""
        self._signals.catch()
        _log.info("starting relay %s with %s", self._options.instance, self._options.source)
        control = self._listen()
        ended = threading.Event()
        counting = threading.Thread(target=self._count, args=(ended,), name="outbox-count")
        counting.daemon = True
        counting.start()
        try:
            self._start()
            while self._stop_signal is None:
                self._orders.wait(_TICK)
                self._look()
            return self._drain()
        finally:
            ended.set()
            for listening in control:
                listening.close()
            self._close()

    # Starting

    def _start(self) -> None:
        """Start the relay, and wait until it can send."""
        limit = self._settings.framework.start_timeout
        end = self._clock.monotonic() + limit
        while not self._is_ready and self._stop_signal is None:
            if self._sending is None:
                self._try_to_start()
            self._look_at_start(end)
            if self._clock.monotonic() >= end and not self._is_ready:
                self._finish()
                why = f"not started within {duration_text(limit)} (start_timeout): {self._trouble}"
                raise Fault(ExitCode.TEMPORARY, why)
            self._orders.wait(_TICK if self._sending else _RETRY)

    def _try_to_start(self) -> None:
        try:
            self._sending = self._made(self._settings)
        except ConfigurationError as error:
            raise ConfigurationError(*error.located, source=self._options.source) from error
        except OutboxError as error:
            if str(error) != self._trouble:
                _log.warning("waiting for the outbox: %s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""
            self._begin(self._sending)

    def _made(self, settings: Settings) -> _Sending:
        """Open the outbox, and make its relay. Nothing is sent yet.

        Raises:
            ConfigurationError: The settings name something that is not there.
            OutboxError: The database does not work, or has no tables.
        """
        _require_database(settings, self._options.source)
        store = OutboxStore.connect(database_of(settings.framework.outbox))
        try:
            require_tables(store, self._options.instance)
            digests = certificates.digests(settings.tls)
            relay = relay_of(settings, store, observer=self._observer, clock=self._clock)
        except BaseException:
            store.close()
            raise
        return _Sending(settings, store, relay, digests)

    def _begin(self, sending: _Sending) -> None:
        self._sending = sending
        self._settings = sending.settings
        self._status.relay, self._status.store = sending.relay, sending.store
        self._status.messenger = sending.settings.framework.outbox.messenger
        sending.start(self._orders.wake)

    def _look_at_start(self, end: float) -> None:
        sending = self._sending
        if sending is not None:
            self._look_after(sending)
            if sending.relay.is_sending or sending.relay.is_standby:
                self._is_ready = True
                _log.info("ready: %s", self._line)
                self._notifier.ready(self._line)
                return
            self._trouble = sending.relay.store_fault or sending.relay.endpoint_fault
        self._extend()
        left = about(max(end - self._clock.monotonic(), 0.0))
        why = self._trouble or "connecting"
        self._notifier.status(f"Starting: {why}; gives up in {left}")

    # Running

    @property
    def _line(self) -> str:
        return "; ".join([self._status.report().line, *filter(None, self._remarks.values())])

    def _look(self) -> None:
        if self._sending is not None:
            self._look_after(self._sending)
        now = self._clock.monotonic()
        if now - self._status_at >= _STATUS_INTERVAL and not self._is_stuck:
            self._status_at = now
            self._notifier.status(self._line)
        if not self._is_proven and self._status.is_proven:
            self._is_proven = True
            self._notifier.restart_reset()

    def _look_after(self, sending: _Sending) -> None:
        """Feed the watchdog while the relay's thread moves.

        Raises:
            Fault: The thread has ended by itself.
        """
        if not sending.runs and not sending.stop.is_set():
            _log.critical("please report this defect of consumer_framework", exc_info=sending.error)
            raise Fault(ExitCode.UNEXPECTED, f"the relay ended by itself: {sending.error!r}")
        interval = self._notifier.watchdog_seconds / FEEDS
        now = self._clock.monotonic()
        if not interval or now - self._watchdog_at < interval:
            return
        self._watchdog_at = now
        if not sending.relay.is_stuck:
            self._notifier.watchdog()
            return
        reason = "neither the messenger nor the database returns"
        if not self._is_stuck:
            self._is_stuck = True
            _log.critical("stuck, and to be restarted: %s", reason)
        self._notifier.trigger(f"Stuck: {reason}")

    def _count(self, ended: threading.Event) -> None:
        """Count rows, in a thread of its own: a table of millions takes long."""
        while not ended.wait(1.0):
            try:
                self._status.count()
            except Exception:  # noqa: BLE001 -- the relay reports a broken database
                _log.debug("the outbox cannot be counted", exc_info=True)

    def _extend(self) -> None:
        now = self._clock.monotonic()
        if now - self._extended_at >= RENEWAL:
            self._extended_at = now
            self._notifier.extend(LEASE)

    # Orders

    def _listen(self) -> list[ControlThread]:
        """Listen on the control socket, and on that of operators if there is a place for it."""
        options = self._options
        path = relay_socket(state_directory(options.instance, options.state_directory))
        by_type: ByType = {
            schema.Ping: self._respond_ping,
            schema.RelayStatus: self._respond_status,
            schema.Stacks: lambda _request: [stacks_of_process()],
            schema.LogLevel: lambda request: [self._log_levels.change(request)],
            schema.Reload: self._respond_reload,
        }
        pages = RelayPages(options.instance, self._status.report, self._is_relay_stuck).by_path
        listening: list[ControlThread] = []
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            listening.append(ControlThread(path, by_type, pages))
            if (operators := operators_socket(path)) is not None:
                listening.append(ControlThread(operators, by_type, pages, mode=0o660))
        except OSError as error:
            _log.warning("no command reaches this relay: the control socket: %s", error)
        return listening

    def _is_relay_stuck(self) -> bool:
        sending = self._sending
        return sending is not None and sending.relay.is_stuck

    def _respond_ping(self, _request: schema.Ping) -> Iterator[schema.Pong]:
        yield this_process(self._options.instance)

    def _respond_status(self, _request: schema.RelayStatus) -> Iterator[schema.RelayStatusReport]:
        remarks = tuple(filter(None, self._remarks.values()))
        yield schema.RelayStatusReport(self._status.report(), os.getpid(), remarks)

    def _respond_reload(self, request: schema.Reload) -> Iterator[schema.ReloadReport]:
        report: Future[schema.ReloadReport] = Future()

        def reload() -> None:
            try:
                report.set_result(self._reload(file_given(request, self._options.path)))
            except BaseException as error:
                report.set_exception(error)
                raise

        self._orders.callFromThread(reload)
        yield report.result()

    def _on_reload(self) -> None:
        self._reload(None)

    def _on_stop(self, number: signal.Signals) -> None:
        # The second one ends the process: see Signals.
        self._stop_signal = self._stop_signal or number

    # Reload

    def _reload(self, given: bytes | None) -> schema.ReloadReport:
        _log.info("reading %s again", self._options.source)
        if self._is_ready:
            self._notifier.reloading("reading the configuration")
        try:
            report = self._try_reload(given)
        except ConfigurationError as error:
            source = self._options.source
            report = refused(ConfigurationError(*error.located, source=source))
        log_report(report, self._options.source)
        self._remarks.update(remarks_of(report))
        if self._is_ready:
            # Also after a refusal.
            self._notifier.ready(self._line)
        return report

    def _try_reload(self, given: bytes | None) -> schema.ReloadReport:
        if given is None:
            now = CredentialSnapshot.take(self._options.path, self._options.instance)
            now.refuse_stale_copy()
        loaded = read_again(self._options, given)
        found = self._changes(loaded.settings)
        before = self._credentials
        if found:
            self._replace(loaded)
        self._credentials = CredentialSnapshot.take(self._options.path, self._options.instance)
        result = "reloaded" if found else "unchanged"
        return schema.ReloadReport(
            result, found, notes=before.notes_of_unchanged(self._credentials)
        )

    def _replace(self, loaded: config.Loaded) -> None:
        """Let a relay with other settings take the place of the present one."""
        former = self._sending
        try:
            new = self._made(loaded.settings)
        except OutboxError as error:
            raise ConfigurationError(Problem(DATABASE, str(error))) from error
        try:
            if self._settings.log_config != loaded.settings.log_config:
                log.forget(self._settings.log_config)
                configure_logging(loaded.settings, self._options)
        except BaseException:
            new.store.close()
            raise
        if former is not None:
            self._wait_for_end(former)
        config.give_to_upstream(loaded.document)
        self._begin(new)
        if former is not None:
            former.store.close()

    def _wait_for_end(self, former: _Sending) -> None:
        if not self._ended(former):
            why = f"the batch did not end within {about(former.drain_limit)} for a reload"
            raise Fault(ExitCode.TEMPORARY, why)

    def _changes(self, new: Settings) -> tuple[Change, ...]:
        """Compare the settings that a relay uses."""
        sending, old = self._sending, self._settings
        found = {
            path
            for path in ("amqp_url", "client_properties", "log_config")
            if getattr(old, path) != getattr(new, path)
        }
        if old.framework.brokers != new.framework.brokers:
            found.add("consumer_config.framework.brokers")
        outbox = "consumer_config.framework.outbox"
        before, after = old.framework.outbox, new.framework.outbox
        keys = type(after).model_fields
        found |= {f"{outbox}.{k}" for k in keys if getattr(before, k) != getattr(after, k)}
        digests = certificates.digests(new.tls)
        known = digests if sending is None else sending.digests
        found |= {f"tls.{key}" for key in digests if digests[key] != known[key]}
        return tuple(Change(path, Takes.RELOAD) for path in sorted(found))

    # Stopping

    def _drain(self) -> int:
        assert self._stop_signal is not None  # noqa: S101 -- the caller looked
        _log.info("%s: stopping", self._stop_signal.name)
        self._notifier.stopping("Stopping: waiting for the end of the batch")
        self._finish()
        counts = self._status.counters
        text = f"Stopped; since its start: {counts.sent} sent"
        _log.info("%s", text)
        self._notifier.status(text)
        return ExitCode.OK

    def _finish(self) -> None:
        """Let the relay end its batch, and give back lease and claims."""
        if self._sending is not None and not self._ended(self._sending):
            lease = about(self._sending.settings.framework.outbox.lease)
            text = "the batch did not end within %s; the next relay sends it again, after %s"
            _log.warning(text, about(self._sending.drain_limit), lease)

    def _ended(self, sending: _Sending) -> bool:
        """Stop *sending*, and wait for its thread; false if that takes too long."""
        sending.stop.set()
        sending.relay.wake()
        end = self._clock.monotonic() + sending.drain_limit
        while sending.thread is not None and sending.runs and self._clock.monotonic() < end:
            # Other orders wait: a reload must not come amid another one.
            sending.thread.join(_TICK)
            self._look_after(sending)
            self._extend()
        return not sending.runs

    def _close(self) -> None:
        if self._sending is not None and not self._sending.runs:
            self._sending.store.close()


def _call_later(seconds: float, function: Callable[[], None]) -> Callable[[], None]:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
    return timer.cancel


def require_tables(store: OutboxStore, name: str) -> None:
    """Check that the outbox has its tables; make them in a SQLite file.

    Args:
        store: The outbox.
        name: That of the relay, for the cure.

    Raises:
        OutboxError: It has none, or none that this program can use, or the database does not work.
    """
    if store.is_sqlite:
        store.migrate()
    elif (fault := store.fault_of_tables(f"fm-consumer outbox migrate {name}")) is not None:
        what, cure = fault
        raise OutboxError(f"the outbox {store.place} {what}; {cure}")
