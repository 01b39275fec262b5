# SPDX-License-Identifier: GPL-2.0-or-later
"""Works on the store of an instance that is stopped, in place of the instance.

:func:`carry_out` answers requests that need no handler, :func:`replay` runs messages again, and
:func:`expire` exports and deletes messages that are too old.

The requests are those of the control socket, and a replayed message goes through the same pipeline
and settler as in an instance. No broker takes part: a row of the store is settled in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from consumer_framework.adapters import codec, config
from consumer_framework.adapters.clock import SystemClock
from consumer_framework.adapters.executor import Executor
from consumer_framework.adapters.store import Limits, Store
from consumer_framework.adapters.store.files import DATABASE, create, described
from consumer_framework.author.translate import hosting
from consumer_framework.core.errors import (
    ConfigurationError,
    ExitCode,
    Fault,
    Problem,
    StoreError,
)
from consumer_framework.core.intake import Holds
from consumer_framework.core.lifecycle import CUT_SHORT_GRACE
from consumer_framework.core.memory import Histories, LostAcks, UnsettledRuns
from consumer_framework.core.pipeline import Pipeline
from consumer_framework.core.ports import Settled
from consumer_framework.core.settler import Settler
from consumer_framework.publishing import FILE
from consumer_framework.runtime.assembly.access import from_outside
from consumer_framework.runtime.assembly.configuration import load
from consumer_framework.runtime.assembly.plan import make_plan
from consumer_framework.runtime.assembly.routes import routed
from consumer_framework.runtime.control.client import reached
from consumer_framework.runtime.control.operators import ORDERED_BY, this_user
from consumer_framework.runtime.control.requests import Responder
from consumer_framework.runtime.control.schema import Replay, Step
from consumer_framework.runtime.state_files import store_limits
from consumer_framework.settings import Framework

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.disposition import Disposition
    from consumer_framework.core.ports import Observation, Outbox
    from consumer_framework.runtime.assembly.configuration import RunOptions
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.runtime.control.replays import Answer
    from consumer_framework.runtime.control.schema import AnswerT, Replay, Request
    from consumer_framework.runtime.publications import Publications

    Tell: TypeAlias = Callable[[Answer], None]

# Rows that expire while an instance of this name could not start, and the seconds that it has to
# do so before the next ones.
AT_ONCE = 2000
PAUSE = 0.5
# Seconds that the message that runs has when somebody interrupts a replay.
PATIENCE = 10.0
_INTERRUPTED = 130


def carry_out(directory: Path, instance: str, request: Request[AnswerT]) -> list[AnswerT]:
    """Carry out a request that needs no handler, and return its answers.

    Args:
        directory: The state directory.
        instance: Its name, which another process reads if it finds the store in use.
        request: The request.

    Raises:
        StoreError: The store cannot be written, or a process has it open.
    """

    async def answers(responder: Responder) -> list[AnswerT]:
        ORDERED_BY.set(this_user())
        return [answer async for answer in responder.respond(request)]

    # A person who drops a message means that one: nothing else expires to make room.
    with closing(Store.open(directory, instance=instance, limits=Limits())) as store:
        return asyncio.run(answers(Responder(store, _cannot_run)))


async def _cannot_run(_delivery: Delivery) -> Disposition:
    raise NotImplementedError


@hosting()
def replay(
    options: RunOptions,
    directory: Path,
    request: Replay,
    tell: Tell,
    interrupted: Callable[[], None],
) -> None:
    """Run rows of a stopped instance's store again, in this process.

    Call it once, after :func:`.reactor.install`: it runs the reactor, which handlers may need.

    Args:
        options: Name the configuration that the handler is built from.
        directory: The state directory.
        request: Names them.
        tell: Called with each answer as it comes.
        interrupted: Called before the process exits in the middle of a row.

    Raises:
        ConfigurationError: The handler cannot be built from the configuration.
        Fault: The handler's own code failed to set it up, or to tear it down.
        StoreError: The store cannot be written, or a process has it open.
        KeyboardInterrupt: Somebody interrupted it; the row that ran has ended, and was reported.
    """
    # Late: it imports the reactor.
    from consumer_framework.runtime.publications import Publications  # noqa: PLC0415

    access = from_outside(options.path, options.instance, lenient=False)
    settings = load(replace(options, access=access))
    codec.load_schemas()
    plan = make_plan(options, settings)
    limits = store_limits(settings.framework)
    publications = Publications(settings, directory, SystemClock())
    with closing(Store.open(directory, instance=options.instance, limits=limits)) as store:
        try:
            with publications.installed():
                run = _ReplayRun(plan, store, request, tell, interrupted, publications)
                _run_reactor(run)
        finally:
            _give_to_owner(directory / FILE)


def _give_to_owner(outbox: Path) -> None:
    """Let the instance open an outbox that root has made."""
    if outbox.exists():
        with described(outbox):
            os.close(create(outbox))


def _run_reactor(run: _ReplayRun) -> None:
    """Run the reactor until *run* is done; raise its error."""
    # Late: this module is imported before the reactor is installed.
    from twisted.internet import reactor  # noqa: PLC0415

    untyped: Any = reactor
    tasks: list[asyncio.Task[None]] = []
    interrupts = _Interrupts(untyped, lambda: run.interrupt(tasks[0]), run.cut_short)

    def start() -> None:
        tasks.append(asyncio.get_running_loop().create_task(run.run()))
        tasks[0].add_done_callback(lambda _: untyped.callLater(0, stop))
        interrupts.catch()

    def stop() -> None:
        if untyped.running:
            untyped.stop()

    untyped.callLater(0, start)
    untyped.run()
    try:
        for task in tasks:
            task.result()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    if interrupts.is_told:
        raise KeyboardInterrupt


class _Interrupts:
    """Takes SIGINT and SIGTERM: the first ends the replay in good order, the second at once.

    Args:
        reactor: Twisted's reactor.
        interrupt: Called on the reactor's thread when the first one comes.
        cut_short: Called there when the second one comes, or the first was long ago.
    """

    def __init__(
        self, reactor: Any, interrupt: Callable[[], None], cut_short: Callable[[], object]
    ) -> None:
        self._reactor = reactor
        self._interrupt = interrupt
        self._cut_short = cut_short
        self.is_told = False

    def catch(self) -> None:
        """Take the signals over from Twisted's reactor, which runs."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.is_told:
            # If a handler blocks the event loop, nothing else would end the process. The next
            # process that opens the store quarantines its claimed row again.
            timer = threading.Timer(CUT_SHORT_GRACE, os._exit, [128 + number])
            timer.daemon = True
            timer.start()
            self._reactor.callFromThread(self._cut_short)
            return
        self.is_told = True
        self._reactor.callFromThread(self._interrupt)
        self._reactor.callFromThread(self._reactor.callLater, PATIENCE, self._cut_short)


@dataclass(slots=True)
class _ReplayRun:
    """One replay in this process.

    Attributes:
        plan: The handler, and the settings to run it with.
        store: Has the rows.
        request: Names them.
        tell: Called with each answer as it comes.
        interrupted: Called before the process exits in the middle of a row.
        publications: Store and send the messages that the handler publishes.
    """

    plan: Plan
    store: Store
    request: Replay
    tell: Tell
    interrupted: Callable[[], None]
    publications: Publications
    _responder: Responder | None = None

    async def run(self) -> None:
        """Set the handler up, run the rows, and tear it down."""
        executor = await _set_up(self.plan, self.store)
        runner = _RowRunner(self.plan, self.store, executor, self.publications)
        self._responder = Responder(self.store, runner.run)
        ORDERED_BY.set(this_user())
        try:
            replay = self._responder.replay(self.request)
            async with contextlib.aclosing(replay) as answers:
                async for answer in answers:
                    self.tell(answer)
        finally:
            await self._responder.finish()
            await runner.finish()
            try:
                await _tear_down(executor)
            finally:
                await self.publications.stop()

    def interrupt(self, task: asyncio.Task[None]) -> None:
        """Let the row that runs end, and begin with no other; cancel a set-up."""
        if self._responder is None:
            task.cancel()
            return
        patience = f"{PATIENCE:.0f} s for the message that runs; Ctrl-C again to stop now"
        self.tell(Step(f"waiting up to {patience}"))
        self._responder.stop_replays()

    def cut_short(self) -> asyncio.Task[None]:
        """Quarantine the row that runs again, and exit."""
        return asyncio.get_running_loop().create_task(self._cut_short())

    async def _cut_short(self) -> None:
        if self._responder is not None:
            self._responder.cancel()
            await self._responder.finish()
        self.interrupted()
        sys.stdout.flush()
        # The store stays open: no other process may have the row while its handler runs in a
        # thread.
        os._exit(_INTERRUPTED)


async def _set_up(plan: Plan, store: Store) -> Executor:
    try:
        executor = Executor(plan.factory(), codec.decode, _NoFlight(), plan.limits, steps=store)
        await executor.setup()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raise _fault(plan.name, "be set up", error) from error
    return executor


async def _tear_down(executor: Executor) -> None:
    try:
        await executor.teardown()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raise _fault("the handler", "be torn down", error) from error
    finally:
        executor.close()


def _fault(name: str, what: str, error: BaseException) -> Fault:
    cause = f"{type(error).__name__}: {error}".partition("\n")[0]
    return Fault(ExitCode.HANDLER_FAILED, f"{name} cannot {what}: {cause}")


class _RowRunner:
    """Runs and settles one row at a time; observes the events of its own pipeline."""

    def __init__(self, plan: Plan, store: Store, handler: Executor, outbox: Outbox) -> None:
        clock = SystemClock()
        self._done: asyncio.Future[Disposition] | None = None
        self._settler = Settler(
            acknowledger=_NoBroker(),
            store=store,
            flight=_NoFlight(),
            observer=self,
            holds=Holds(0, clock),
            histories=Histories(),
            unsettled=UnsettledRuns(clock),
            lost_acks=LostAcks(clock),
            store_failed=self._store_failed,
            store_works=_ignore,
            done=_ignore,
            clock=clock,
            spawn=asyncio.create_task,
            watch=self._commit_failed,
            outbox=outbox,
            is_stopping=True,
        )
        self._pipeline = Pipeline(
            handler=routed(handler, plan, self._settler, random.random, lambda: 1),
            policy=plan.policy,
            store=store,
            observer=self,
            clock=clock,
            chance=random.random,
            settler=self._settler,
        )

    async def run(self, delivery: Delivery) -> Disposition:
        """Run a claimed row once; return its disposition once that is committed."""
        self._done = asyncio.get_running_loop().create_future()
        # Its crashes are forgiven, or a handler that defers it would have it refused when due.
        history = delivery.history.for_replay
        await self._pipeline.process(delivery._replace(history=history, replayed=True))
        return await self._done

    async def finish(self) -> None:
        """Give up commits that cannot be made."""
        await self._settler.commits()

    def notify(self, event: Observation) -> None:
        """Take the disposition of the row, once that is committed."""
        if not isinstance(event, Settled) or event.is_void:
            return
        if self._done is not None and not self._done.done():
            self._done.set_result(event.decision.disposition)

    def _store_failed(self, reason: str) -> None:
        # An instance waits until the disk works again; an operator is told.
        if self._done is not None and not self._done.done():
            self._done.set_exception(StoreError(reason))

    def _commit_failed(self, commit: asyncio.Task[None]) -> None:
        error = commit.exception()
        if error is not None and self._done is not None and not self._done.done():
            self._done.set_exception(error)


def _ignore(*_: object) -> None:
    """Nobody waits for this here."""


class _NoBroker:
    """An :class:`.Acknowledger` for rows of the store, which no broker waits for."""

    def is_open(self, _delivery: Delivery) -> bool:
        return False

    def ack(self, _delivery: Delivery) -> bool:
        return False

    def give_back(self, _delivery: Delivery) -> bool:
        return False

    def requeue(self, _delivery: Delivery) -> bool:
        return False

    def reject(self, _delivery: Delivery) -> bool:
        return False


class _NoFlight:
    """A :class:`.FlightRecorder` that leaves the instance's own alone."""

    def crashes_of(self, _delivery: Delivery) -> int:
        return 0

    def has_hung(self, _delivery: Delivery) -> bool:
        return False

    def route_of(self, _delivery: Delivery) -> str:
        return ""

    def forget(self, _delivery: Delivery) -> None:
        pass

    def took_off(self, _delivery: Delivery) -> int:
        return 0

    def landed(self, _place: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Expiry:
    """The result of :func:`expire` for one instance.

    Attributes:
        rows: The number of messages that were exported and deleted.
        file: The file that they were appended to; None if there was no store.
        is_running: The instance runs, and was left alone.
    """

    rows: int = 0
    file: Path | None = None
    is_running: bool = False


def expire(
    instance: str,
    file: Path,
    directory: Path,
    now: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Expiry:
    """Export and delete messages that were quarantined for longer than ``quarantine_max_age``.

    A running instance does so itself, and is left alone.

    Args:
        instance: Its name.
        file: Its configuration. Only the framework's own table is read: the credentials and the
            handler are not there without the service.
        directory: Its state directory.
        now: Seconds since the epoch.
        sleep: Waits for so many seconds, and so lets an instance start in the middle of it.

    Raises:
        ConfigurationError: The file cannot be read, or the table is not valid.
        ControlError: The instance runs, but this user may not ask it.
        StoreError: The store cannot be written, or the file of expired messages.
    """
    max_age = _max_age(instance, file)
    if not _has_store(directory):
        return Expiry()
    done = Expiry()
    while True:
        with reached(directory, instance) as running:
            if running is not None:
                return replace(done, is_running=True)
        limits = Limits(max_age)
        with closing(Store.open(directory, instance=instance, limits=limits)) as store:
            expired = asyncio.run(store.expire(now, most=AT_ONCE))
        done = Expiry(done.rows + expired.rows, expired.file)
        if expired.rows < AT_ONCE:
            return done
        sleep(PAUSE)


def _max_age(instance: str, file: Path) -> float:
    author = config.read(file).get("consumer_config", {})
    table = author.get("framework", {}) if isinstance(author, dict) else None
    try:
        return Framework.model_validate(table).quarantine_max_age
    except ValidationError:
        cure = f"'fm-consumer check {instance}' says where"
        problem = Problem("consumer_config.framework", "is not valid", cure)
        raise ConfigurationError(problem, source=str(file)) from None


def _has_store(directory: Path) -> bool:
    file = directory / DATABASE
    with described(file):
        # exists() takes a directory that may not be searched for an error on some Pythons only.
        try:
            file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True
