# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the real consumer of a configuration on recorded messages, without a broker.

::

    recorded messages ─▶ fake queue ─▶ the dispatcher, policy and executor of an instance ─▶ ends
                                                │
                        fake store, fake outbox ┘     time passes as soon as nothing is left to do

The plan is that of the daemon (:mod:`consumer_framework.runtime.assembly`). The instance is that of
the test harness (:class:`.VirtualInstance`), so that a retry in five minutes takes no time. While a
handler has a message, it may use the network, files and threads: the replay waits for it, and time
passes as in the world outside.

The queue, the store and the outbox are in memory. Nothing of the instance is touched: neither its
broker, nor its store, nor its state directory. Messages that the handler publishes are counted and
not sent. Everything else that the handler does is done.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedora_messaging import config as upstream

from consumer_framework.adapters import codec
from consumer_framework.author.translate import hosting
from consumer_framework.core.delivery import SettledBefore, Skipped, Undecodable
from consumer_framework.core.disposition import (
    Ack,
    Disposition,
    Halt,
    Quarantine,
    Reject,
    Requeue,
    rule_for,
)
from consumer_framework.core.errors import ConfigurationError, ExitCode, Fault
from consumer_framework.core.ports import Observer, Settled
from consumer_framework.core.text import about
from consumer_framework.runtime.assembly.configuration import load
from consumer_framework.runtime.assembly.loader import is_plain_class
from consumer_framework.runtime.assembly.plan import make_plan
from consumer_framework.testing.fake_store import FakeStore
from consumer_framework.testing.harness import PublishingCapture
from consumer_framework.testing.virtual_instance import VirtualInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery
    from consumer_framework.core.ports import Observation
    from consumer_framework.runtime.assembly.configuration import RunOptions
    from consumer_framework.runtime.assembly.plan import Plan
    from consumer_framework.settings import Settings
    from consumer_framework.testing.fake_queue import MessageRecord

    from .recorded import Recorded

# Messages that are under way at once: in the queue, in the handler, held and deferred.
WINDOW = 1000
# Messages that are over when they are forgotten.
_FORGOTTEN = 200
# Seconds of virtual time: a pause that lasts so long does not end, and a replay takes no longer.
LONGEST_PAUSE = 3600.0
LONGEST_REPLAY = 30 * 86400.0
# A message that ran so often, and is not done, never will be.
MOST_RUNS = 100

# The fates of messages, in words, and whether each is one that the author wants.
FATES = {
    "succeeded": True,
    "skipped": True,
    "dropped": True,
    "exhausted": False,
    "invalid": False,
    "quarantined": False,
    "requeued": False,
    "halted": False,
    "unfinished": False,
}


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of one message.

    Attributes:
        recorded: The message.
        fate: A key of :data:`FATES`.
        reason: The reason in one line; "" for a success.
        disposition: Its last disposition; None if it has none.
        attempts: The failed attempts, oldest first.
        runs: How often the handler got it.
        seconds: Virtual seconds from the start of the replay.
    """

    recorded: Recorded
    fate: str
    reason: str
    disposition: Disposition | None
    attempts: tuple[Attempt, ...]
    runs: int
    seconds: float

    @property
    def is_good(self) -> bool:
        """True if the author wants such an end."""
        if isinstance(self.disposition, Halt):
            return self.disposition.exit_code == 0 and not self.disposition.requeue
        return FATES[self.fate]

    @property
    def cause(self) -> str:
        """The fingerprint of the last failure, or the reason where there was none."""
        return self.attempts[-1].fingerprint if self.attempts else self.reason


@dataclass
class Summary:
    """The result of a replay.

    Attributes:
        fates: The number of messages of each fate.
        causes: The number of messages of each cause, of those with a bad end.
        is_good: True if every message had a good end, and the replay was not cut short.
        cut_short: The reason why messages were not run to their end; "" if all were.
        published: The number of messages that the consumer published; none was sent.
        seconds: Real seconds of the run, without setup and teardown.
        virtual_seconds: Virtual seconds that passed.
    """

    fates: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    is_good: bool = True
    cut_short: str = ""
    published: int = 0
    seconds: float = 0.0
    virtual_seconds: float = 0.0

    @property
    def messages(self) -> int:
        """The number of messages that were run."""
        return self.fates.total()

    @property
    def rate(self) -> float:
        """Messages in a real second."""
        return self.messages / self.seconds if self.seconds else 0.0

    def add(self, ended: Ended) -> None:
        """Count *ended*."""
        self.fates[ended.fate] += 1
        if not ended.is_good:
            self.is_good = False
            self.causes[ended.cause] += 1


def plan_of_replay(options: RunOptions) -> tuple[Settings, Plan]:
    """Load a configuration, and plan how to run its consumer.

    Args:
        options: Name the file and the callback. The state directory must be one that is thrown
            away afterwards.

    Raises:
        ConfigurationError: With every problem there is.
    """
    settings = load(options)
    codec.load_schemas()
    return settings, make_plan(options, settings)


class Replay(Observer):
    """One replay. Use it once, and in the main thread.

    Args:
        plan: The plan, as :func:`plan_of_replay` makes it. Its configuration must be that of
            fedora-messaging.
        tell: Called with the end of each message, as it comes.
        longest: Virtual seconds that the replay may take.
        longest_pause: Virtual seconds that a pause for a broken dependency may take.
    """

    def __init__(
        self,
        plan: Plan,
        tell: Callable[[Ended], object],
        *,
        longest: float = LONGEST_REPLAY,
        longest_pause: float = LONGEST_PAUSE,
    ) -> None:
        self.summary = Summary()
        self._plan = plan
        self._tell = tell
        self._longest = longest
        self._longest_pause = longest_pause
        self._store = FakeStore()
        self._publishing = PublishingCapture()
        self._instance = VirtualInstance(
            plan, self._store, lambda: 0.5, None, self._publishing.outbox
        )
        self._instance.observers = (self,)
        self._has_lanes = plan.source_of is not None or plan.policy.strict
        self._open: dict[int, MessageRecord] = {}
        self._over = 0
        self._tired: list[MessageRecord] = []
        self._paused_since: float | None = None
        self._interrupted = threading.Event()

    def run(self, messages: Iterable[Recorded]) -> Summary:
        """Set the consumer up, run *messages*, and tear it down.

        Raises:
            Fault: The consumer cannot be set up, or torn down.
            OSError: *messages* raised it; the consumer is torn down.
        """
        with self._hosted():
            with _faults(self._plan.name, "be set up"):
                self._set_up()
            began = time.monotonic()
            try:
                self._drive(iter(messages))
            finally:
                self._end_others()
                self.summary.seconds = time.monotonic() - began
                self.summary.virtual_seconds = self._instance.time.monotonic()
                self.summary.published = len(self._publishing.published)
                if not self.is_busy:
                    with _faults("the handler", "be torn down"):
                        self._instance.stop(teardown=True)
        return self.summary

    def interrupt(self) -> None:
        """End the replay soon: no further message begins. A signal handler may call this."""
        self._interrupted.set()
        loop = self._instance.time.loop
        loop.call_soon_threadsafe(loop.stop)

    @property
    def is_busy(self) -> bool:
        """True while the handler has a message."""
        return self._instance.is_busy

    @property
    def virtual_seconds(self) -> float:
        """Virtual seconds that have passed."""
        return self._instance.time.monotonic()

    # The life of the instance.

    @contextmanager
    def _hosted(self) -> Iterator[None]:
        self._instance.open()
        loop = self._instance.time.loop
        with ExitStack() as stack:
            stack.callback(self._instance.time.close)
            stack.callback(asyncio.set_event_loop, None)
            stack.enter_context(self._instance.time.woken_by_signals())
            # Until its end, a plain class finds it as the loop of the thread.
            asyncio.set_event_loop(loop)
            publishing = self._publishing.installed(self._plan.framework, upstream.conf)
            stack.enter_context(publishing)
            stack.enter_context(hosting())
            yield

    def _set_up(self) -> None:
        plan = self._plan
        if plan.target is not None and is_plain_class(plan.target):
            # As in an instance, it is made before the loop runs.
            handler = plan.factory()
            self._instance.plan = replace(plan, factory=lambda: handler)
        self._instance.start()

    def _drive(self, messages: Iterator[Recorded]) -> None:
        """Let messages run, and time pass, until all are done or nothing more will be."""
        instance = self._instance
        while not self._interrupted.is_set():
            self._refill(messages)
            instance.offer()
            self._give_up()
            if instance.halted is not None:
                self.summary.cut_short = f"the consumer halted: {instance.halted.reason}"
                return
            if not self._open and not self._refill(messages):
                return
            self.summary.cut_short = self._limit()
            if self.summary.cut_short:
                return
            if self._end_followers():
                continue
            if not self._interrupted.is_set() and not instance.step():
                self.summary.cut_short = "nothing is due any more"
                return
        self.summary.cut_short = "interrupted"

    def _refill(self, messages: Iterator[Recorded]) -> bool:
        """Publish messages until enough are under way; return True if there was one."""
        if self._over >= _FORGOTTEN:
            self._forget()
        is_any = False
        while len(self._open) < WINDOW:
            recorded = next(messages, None)
            if recorded is None:
                break
            delivery = recorded.delivery
            record = self._instance.queue.publish(
                recorded, delivery.routing_key, delivery.properties, delivery.body
            )
            record.delivery = record.delivery._replace(queue=delivery.queue)
            self._open[record.number] = record
            is_any = True
        return is_any

    def _limit(self) -> str:
        """Return the reason why it makes no sense to let more time pass; "" while it does."""
        now, paused = self._instance.time.monotonic(), self._instance.paused
        if now > self._longest:
            return f"more than {about(self._longest)} of virtual time have passed"
        if not paused:
            self._paused_since = None
            return ""
        if self._paused_since is None:
            self._paused_since = now
        if now - self._paused_since > self._longest_pause:
            return f"paused for {about(self._longest_pause)} of virtual time: {paused}"
        return ""

    # The ends of messages.

    def notify(self, event: Observation) -> None:
        """Take note of the end of a message."""
        if not isinstance(event, Settled) or event.is_void:
            return
        if isinstance(event.outcome, SettledBefore):
            return
        disposition = event.decision.disposition
        record = self._instance.queue.of(event.delivery)
        if not (rule_for(disposition).is_final or isinstance(disposition, Requeue | Halt)):
            if len(record.runs) >= MOST_RUNS:
                self._tired.append(record)
        elif record.number in self._open:
            fate, reason = _fate_of(event)
            record.history = event.decision.history
            self._end(record, fate, reason, disposition)
            # It would come again at once, and without end.
            self._instance.queue.withdraw(record)

    def _end(
        self, record: MessageRecord, fate: str, reason: str, disposition: Disposition | None
    ) -> None:
        del self._open[record.number]
        self._paused_since = None
        recorded: Any = record.given
        ended = Ended(
            recorded=recorded,
            fate=fate,
            reason=reason,
            disposition=disposition,
            attempts=record.history.attempts,
            runs=len(record.runs),
            seconds=self._instance.time.monotonic(),
        )
        self.summary.add(ended)
        self._tell(ended)
        self._over += 1

    def _give_up(self) -> None:
        """End the messages that were run too often."""
        tired, self._tired = self._tired, []
        for record in tired:
            if record.number in self._open:
                current = self._instance.dispositions.current(record)
                reason = getattr(current, "reason", "") or "it is never done"
                what = f"given up after {MOST_RUNS} runs: {reason}"
                self._end(record, "unfinished", what, current)

    def _end_followers(self) -> bool:
        """End the messages that were quarantined behind others, without a settle; True if any."""
        rows = [(row, reason) for row, reason in self._store.quarantined if row.lane]
        reasons = {_parts(row): reason for row, reason in rows}
        ended = [
            record
            for record in self._open.values()
            if reasons and _parts(record.delivery) in reasons
        ]
        for record in ended:
            reason = reasons[_parts(record.delivery)]
            self._end(record, "quarantined", reason, Quarantine(reason))
        return bool(ended)

    def _forget(self) -> None:
        """Forget the messages that are over, and their rows: they would take memory and time."""
        self._over = 0
        self._instance.queue.forget(lambda record: record.number not in self._open)
        for delivery, _ in self._store.quarantined:
            if not delivery.lane:
                self._store.drop(delivery.row)

    def _end_others(self) -> None:
        for record in list(self._open.values()):
            current = self._instance.dispositions.current(record)
            reason = getattr(current, "reason", "")
            self._end(record, "unfinished", reason or self.summary.cut_short, current)


def _parts(delivery: Delivery) -> tuple[str, str, bytes]:
    return delivery.message_id, delivery.routing_key, delivery.body


def _fate_of(event: Settled) -> tuple[str, str]:
    """Return the fate of a message, and its reason."""
    disposition = event.decision.disposition
    reason = disposition.reason
    if isinstance(event.outcome, Undecodable):
        return "invalid", reason
    if isinstance(event.outcome, Skipped):
        return "skipped", event.outcome.reason
    if isinstance(disposition, Reject):
        # On purpose, a message is dropped without a failed attempt.
        has_failed = event.decision.history != event.delivery.history
        return "exhausted" if has_failed else "dropped", reason
    if isinstance(disposition, Requeue) and event.delivery.row:
        return "quarantined", reason
    if isinstance(disposition, Halt):
        reason = f"exit code {disposition.exit_code}" + (f": {reason}" if reason else "")
    return _FATE_BY_DISPOSITION[type(disposition)], reason


_FATE_BY_DISPOSITION: dict[type[Disposition], str] = {
    Ack: "succeeded",
    Quarantine: "quarantined",
    Requeue: "requeued",
    Halt: "halted",
}


@contextmanager
def _faults(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, ConfigurationError):
        raise
    except BaseException as error:
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise Fault(ExitCode.HANDLER_FAILED, f"{name} cannot {what}: {cause}") from error
